from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from purnet.errors import OutOfMemoryError
from purnet.inference.parity import mask_difference
from purnet.inference.torch_engine import (
    CudaEngine,
    EagerEngine,
    fuse,
    reference_output,
    to_images,
    to_output,
    to_uint8,
)
from purnet.network.purnet import PurNet
from purnet.network.variants import build


def settled(name: str = "purnet-lite0") -> PurNet:
    """A network whose running statistics are those of real activations, not 0 and 1."""
    torch.manual_seed(0)
    network = build(name)
    with torch.no_grad():
        network(torch.rand(2, 3, 64, 64))
    return network.eval()


def pixels(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_saliency_is_truncated_to_grey_levels_not_rounded() -> None:
    saliency = torch.tensor([0.0, 0.0039, 0.00393, 0.5, 0.999, 0.9999, 1.0])
    assert to_uint8(saliency).tolist() == [0, 0, 1, 127, 254, 254, 255]


def test_pixels_become_rgb_in_0_to_1() -> None:
    batch = np.zeros((1, 2, 2, 3), np.uint8)
    batch[0, 1, 0] = (255, 51, 0)
    images = to_images(batch, torch.device("cpu"))
    assert images.shape == (1, 3, 2, 2)
    assert images[0, :, 1, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_image_whose_logits_are_not_finite_is_marked_and_no_other(bad: float) -> None:
    logits = torch.zeros(3, 1, 4, 4)
    logits[1, 0, 2, 2] = bad
    maps = to_output(logits)
    assert maps.finite.tolist() == [True, False, True]
    assert maps.masks[0].max() == 127
    assert maps.masks[1].max() == 0


@pytest.mark.parametrize(
    "name", ["purnet-lite0", "purnet-lite0-s2", "purnet-lite0-gc", "purnet-resnet50"]
)
def test_fusing_leaves_no_normalisation_that_could_be_folded_and_changes_nothing(
    name: str,
) -> None:
    network = settled(name)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = network.predict(images)
        fuse(network)
        after = network.predict(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(before, after, atol=1e-4)


def test_fusing_leaves_a_normalisation_that_also_activates() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    layers = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4)).eval()
    fuse(layers)
    assert isinstance(layers[1], NormAct)


def test_the_engine_passes_the_parity_gate() -> None:
    network = settled()
    batch = pixels(3)
    reference = reference_output(network, batch)
    found = EagerEngine(network)(batch)
    assert mask_difference(found.masks, reference.masks).passes
    assert found.masks.shape == (3, 64, 64)
    assert found.masks.dtype == np.uint8
    assert found.finite.all()


def test_a_batch_equals_its_images_one_by_one() -> None:
    engine = EagerEngine(settled())
    batch = pixels(4)
    together = engine(batch).masks
    alone = np.concatenate([engine(batch[i : i + 1]).masks for i in range(4)])
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1


class Failing(nn.Module):
    """Stands where a network does, and fails as told."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def predict(self, _images: torch.Tensor) -> torch.Tensor:
        raise self.error


def cuda_engine_on_the_cpu(network: PurNet) -> CudaEngine:
    return CudaEngine(network, torch.device("cpu"))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (EagerEngine, MemoryError("no room")),
        (EagerEngine, RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")),
        (cuda_engine_on_the_cpu, torch.cuda.OutOfMemoryError("CUDA out of memory")),
    ],
)
def test_a_batch_too_big_for_the_device_says_so(
    make: Callable[[nn.Module], EagerEngine | CudaEngine], error: Exception
) -> None:
    with pytest.raises(OutOfMemoryError):
        make(Failing(error))(pixels(1))


@pytest.mark.parametrize("make", [EagerEngine, cuda_engine_on_the_cpu])
def test_any_other_failure_keeps_its_own_name(
    make: Callable[[nn.Module], EagerEngine | CudaEngine],
) -> None:
    with pytest.raises(RuntimeError, match="device-side assert"):
        make(Failing(RuntimeError("device-side assert triggered")))(pixels(1))


def test_the_cuda_engine_computes_what_the_eager_one_does() -> None:
    batch = pixels(2)
    here = EagerEngine(settled())(batch)
    there = cuda_engine_on_the_cpu(settled())(batch)
    assert np.array_equal(here.masks, there.masks)


def test_the_cuda_engine_keeps_convolutions_in_float32() -> None:
    class Watching(nn.Module):
        def predict(self, images: torch.Tensor) -> torch.Tensor:
            assert not torch.backends.cudnn.allow_tf32
            return images[:, :1]

    before = torch.backends.cudnn.allow_tf32
    CudaEngine(Watching().eval(), torch.device("cpu"))(pixels(1))
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_the_cuda_engine_passes_the_parity_gate_on_a_gpu() -> None:
    network = settled()
    batch = pixels(4, size=320)
    reference = reference_output(network, batch)
    engine = CudaEngine(network, torch.device("cuda:0"))
    assert engine.device == "cuda:0"
    assert mask_difference(engine(batch).masks, reference.masks).passes
