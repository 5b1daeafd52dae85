"""Gradients that are replayed are those that are computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from purnet.data.dataset import Sample
from purnet.network import variants
from purnet.training.gradients import CapturedGradients, CapturedGraph, Gradients, Losses
from purnet.training.losses import Criterion
from purnet.training.recipe import LossWeights

pytestmark = pytest.mark.needs_torch

CPU = torch.device("cpu")


def gradients(device: torch.device) -> Gradients:
    torch.manual_seed(0)
    network = variants.build("purnet-lite0-gc").to(device)
    weights = LossWeights(saliency=1, iou=1, s_measure=1, promotion=1, object=1, error=1)
    criterion = Criterion(weights=weights, levels=[1.0, 0.5, 0.25, 0.125], boundary=3.0)
    return Gradients(network, criterion, device, isolate=False, autocast=False)


def sample(seed: int, size: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def noise(channels: int, step: int) -> Tensor:
        side = size // step
        x = torch.randint(0, 256, (2, channels, side, side), generator=generator)
        return x.repeat_interleave(step, 2).repeat_interleave(step, 3).byte()

    empty = torch.empty((2, 0, size, size), dtype=torch.long)
    return Sample(noise(3, 1), noise(1, 16), empty, torch.arange(2))


def of_parameters(made: Gradients) -> list[Tensor]:
    """A copy of every gradient."""
    return [p.grad.clone() for p in made.network.parameters() if p.grad is not None]


def capture_on_the_cpu(compute: Callable[[], Losses]) -> CapturedGraph:
    """As a CUDA graph does it: the same tensors hold what each replay computes."""
    for _ in range(2):
        compute()
    losses = compute()

    def replay() -> None:
        again = compute()
        losses.total.copy_(again.total)
        for name, term in losses.terms.items():
            term.copy_(again.terms[name])

    return CapturedGraph(replay, losses)


BATCHES = [sample(1, 64), sample(2, 64), sample(3, 96), sample(4, 64), sample(5, 96)]


def check(device: torch.device, captured: CapturedGradients, replayed: Gradients) -> None:
    computed = gradients(device)
    kept: list[tuple[Losses, Losses]] = []
    for batch in BATCHES:
        kept.append((captured(batch), computed(batch)))
        pairs = zip(of_parameters(replayed), of_parameters(computed), strict=True)
        for found, wanted in pairs:
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        for found, wanted in zip(
            replayed.network.buffers(), computed.network.buffers(), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    # Looked at in the end: a later replay must not overwrite them.
    for found, wanted in kept:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_a_graph_for_each_size_gives_what_is_computed() -> None:
    replayed = gradients(CPU)
    captured = 0

    def capture(compute: Callable[[], Losses]) -> CapturedGraph:
        nonlocal captured
        captured += 1
        return capture_on_the_cpu(compute)

    check(CPU, CapturedGradients(replayed, capture), replayed)
    assert captured == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_gives_what_is_computed() -> None:
    device = torch.device("cuda:0")
    replayed = gradients(device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        check(device, CapturedGradients(replayed), replayed)
