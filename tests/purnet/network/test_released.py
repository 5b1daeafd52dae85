"""The released network, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from purnet.inference import factory
from purnet.network import released, variants
from purnet.network.backbones import ResNet50
from purnet.network.checkpoint import load
from purnet.network.purnet import PurNet, PurNetOutput

pytestmark = pytest.mark.needs_torch

TOLERANCE = 5e-6
"""Of any value of any map; an independent implementation reaches 2.5e-6."""


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _bare(network: PurNet) -> PurNet:
    """A network that takes images as already normalised."""
    network.normalize = nn.Identity()
    return network


@pytest.fixture(scope="module")
def stage3_file(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("released") / "stage3.pth"
    torch.save(reference.state(3), path)
    return path


@pytest.fixture(scope="module")
def stage3(stage3_file: Path) -> PurNet:
    return _bare(load(stage3_file))


@pytest.fixture(scope="module")
def output(reference: Any, stage3: PurNet) -> PurNetOutput:
    result: PurNetOutput = stage3(reference.images)
    return result


@pytest.fixture(scope="module")
def prediction(reference: Any, stage3: PurNet) -> Tensor:
    return stage3.predict(reference.images)


def _maps(output: PurNetOutput) -> dict[str, Tensor]:
    """Named and sampled as in the reference."""
    kinds = {
        "saliency": (output.saliency, torch.sigmoid),
        "promotion": (output.promotion, torch.sigmoid),
        "object": (output.object, torch.sigmoid),
        "error": (output.error, torch.tanh),
    }
    maps = {
        f"{kind}{level}_every8th": activate(logits)[:, :, ::8, ::8]
        for kind, (levels, activate) in kinds.items()
        for level, logits in enumerate(levels, 1)
    }
    return {"saliency": output.saliency[0].sigmoid(), **maps}


def _assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], atol=TOLERANCE, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("stage", "parameters"), [(1, 25_951_448), (3, 35_528_122)])
def test_every_name_has_its_place(reference: Any, stage: int, parameters: int) -> None:
    network = variants.build(released.VARIANT, attention=stage == 3)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    for constant in ("normalize.mean", "normalize.std"):
        del shapes[constant]

    theirs = {tensor["name"]: tensor["shape"] for tensor in reference.tensors(stage)}

    assert {released.ours(name): shape for name, shape in theirs.items()} == shapes
    assert {released.theirs(name): shape for name, shape in shapes.items()} == theirs
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters


def test_stage_1_maps(reference: Any, tmp_path: Path) -> None:
    path = tmp_path / "stage1.pth"
    torch.save(reference.state(1), path)
    network = _bare(load(path))

    _assert_same(_maps(network(reference.images)), reference.outputs(1))


def test_stage_3_maps(reference: Any, output: PurNetOutput) -> None:
    wanted = reference.outputs(3)

    assert len(wanted) == 21
    _assert_same(_maps(output), wanted)


def test_predict_is_forward(prediction: Tensor, output: PurNetOutput) -> None:
    assert torch.equal(prediction, output.saliency[0])


def test_a_batch_of_two_is_two_of_one(reference: Any, stage3: PurNet, prediction: Tensor) -> None:
    singly = torch.cat([stage3.predict(image[None]) for image in reference.images])

    torch.testing.assert_close(singly.sigmoid(), prediction.sigmoid(), atol=1e-6, rtol=0)


def test_through_the_public_door(reference: Any, stage3_file: Path) -> None:
    network = load(stage3_file)
    normalize = network.normalize
    images = reference.images[:1] * normalize.std + normalize.mean

    saliency = network.predict(images).sigmoid()

    torch.testing.assert_close(saliency, reference.outputs(3)["saliency"][:1], atol=2e-5, rtol=0)


def _as_their_test_script(network: PurNet, photo: Image.Image) -> NDArray[np.uint8]:
    """Photo -> map of its size, with the libraries their test script uses."""
    see = v2.Compose(
        [
            v2.Resize([320, 320]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(ResNet50.mean, ResNet50.std),
        ]
    )
    saliency = network.predict(see(photo)[None]).sigmoid()[0]
    levels = np.asarray(v2.ToPILImage()(saliency))
    return cv2.resize(levels, photo.size)


def test_photos_get_the_maps_of_their_pipeline(stage3: PurNet, stage3_file: Path) -> None:
    predictor = factory.load(stage3_file, device="cpu")
    for size in ((451, 300), (200, 340)):
        photo = Image.fromarray(skimage.data.chelsea()).resize(size)

        found = predictor.predict(photo).astype(int)

        wanted = _as_their_test_script(stage3, photo).astype(int)
        assert wanted.std() > 5
        # One level where a value stands on the edge of truncation, one for OpenCV's fixed point.
        assert np.abs(found - wanted).max() <= 2
        assert np.abs(found - wanted).mean() < 0.2


@pytest.mark.parametrize(("height", "width"), [(256, 256), (352, 320)])
def test_other_sizes(stage3: PurNet, height: int, width: int) -> None:
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))

    output: PurNetOutput = stage3(images)

    assert all(
        logits.shape == (1, 1, height, width)
        for levels in (output.saliency, output.promotion, output.object, output.error)
        for logits in levels
    )
    assert torch.equal(stage3.predict(images), output.saliency[0])


def test_work() -> None:
    """Counted on shapes alone: 2 x multiply-adds of one 320 x 320 image."""
    with torch.device("meta"):
        network = variants.build(released.VARIANT).eval()
        images = torch.empty(1, 3, 320, 320)

    with FlopCounterMode(display=False) as everything:
        network(images)
    with FlopCounterMode(display=False) as needed:
        network.predict(images)

    assert everything.get_total_flops() == pytest.approx(82.77e9, rel=0.01)
    assert needed.get_total_flops() <= 52e9
