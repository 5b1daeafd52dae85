"""An application that `serve deploy` brought up from our config file, and a server that uses it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from ray_cluster import ray_cluster
from typer.testing import CliRunner

from purnet.inference.factory import load
from purnet_serve.cli import app
from purnet_serve.http.event_loop import new_event_loop
from purnet_serve.inference.local import PREDICTOR
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.inference.ray.messages import unpack_state
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.settings import Settings

LIMIT_S = 240.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def test_what_serve_deploy_brings_up_is_used_as_it_is(tmp_path: Path) -> None:
    written = CliRunner().invoke(app, ["ray-config", "--set", "ray_app=from-a-file"])
    assert written.exit_code == 0
    file = tmp_path / "model.yaml"
    file.write_text(written.output)
    size = load(device="cpu").input_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)

    async def scenario(address: str) -> np.ndarray:
        from purnet_serve.inference.ray.cluster import RayTier

        # Other settings than those in the file: these are for servers that deploy.
        settings = Settings(backend="ray", ray_address=address, ray_app="from-a-file", max_batch=3)
        metrics = InferenceMetrics(CollectorRegistry())
        backend = RayBackend(settings, metrics, RayTier(settings, PREDICTOR))
        await backend.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                await backend.wait_ready()
                deadline_s = asyncio.get_running_loop().time() + LIMIT_S
                prediction = await backend.predict(pixels, deadline_s=deadline_s)
                (state,) = await backend._tier.describe()
            assert unpack_state(state).deployed is None, "it was not deployed again"
            return prediction.mask
        finally:
            await backend.stop()

    with ray_cluster(1, dashboard=True) as cluster:
        serve = Path(sys.executable).parent / "serve"
        command = [str(serve), "deploy", str(file), "--address", cluster.dashboard_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            mask = runner.run(scenario(cluster.address))
    expected = load(device="cpu").run(pixels[None]).masks[0]
    assert np.abs(mask.astype(int) - expected).max() <= 1
