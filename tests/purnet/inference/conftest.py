from __future__ import annotations

import pytest
from exported_network import SIZE, Exported, contrasting

from purnet.inference.openvino_export import export
from purnet.network import checkpoint


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    network, path = contrasting(), folder / "network.safetensors"
    info = checkpoint.CheckpointInfo("purnet-lite0", SIZE, attention=True, notes={})
    checkpoint.save(network.state_dict(), path, info, half=False)
    return Exported(network, path, folder / "export", export(path, folder / "export"))
