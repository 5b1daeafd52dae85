"""Loss and gradients of one batch: computed, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from purnet.data.dataset import Sample
from purnet.network.purnet import PurNet
from purnet.training.losses import Criterion


class Losses(NamedTuple):
    """Of one batch, on the device, which may still be computing them."""

    total: Tensor
    """What was minimised."""
    terms: dict[str, Tensor]
    """What it is made of, not yet weighted."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Called with a batch, leaves its gradients in the network's parameters; never waits for them.

    `isolate` is as in `PurNet.forward`. With `autocast` convolutions compute in bfloat16.
    """

    network: PurNet
    criterion: Criterion
    device: torch.device
    isolate: bool
    autocast: bool

    def __call__(self, batch: Sample) -> Losses:
        """Compute the losses of a batch and their gradients."""
        # Of the batch as it came: the device would have to be asked.
        region_count = int(batch.regions.max()) + 1 if batch.regions.numel() else 0
        for parameter in self.network.parameters():
            parameter.grad = None
        image, mask, regions = (
            x.to(self.device, non_blocking=True) for x in (batch.image, batch.mask, batch.regions)
        )
        return self.compute(image, mask, regions, region_count)

    def compute(self, image: Tensor, mask: Tensor, regions: Tensor, region_count: int) -> Losses:
        """Add the gradients of a batch, whose tensors are on the device, to the parameters'."""
        images = image.float().div_(255).contiguous(memory_format=torch.channels_last)
        truth = mask.float().div_(255)
        # A weight is used once in a step, and a CUDA graph must not hold what a cache may drop.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False
        ):
            output = self.network(images, isolate=self.isolate)
        losses = self.criterion(output, truth, regions, region_count)
        total = self.criterion.total(losses)
        total.backward()  # type: ignore[no-untyped-call]
        return Losses(total.detach(), {name: term.detach() for name, term in losses.items()})


class CapturedGraph(NamedTuple):
    """A computation that can be done again over the same tensors."""

    replay: Callable[[], object]
    losses: Losses
    """Overwritten by `replay`."""


def capture_cuda_graph(compute: Callable[[], Losses]) -> CapturedGraph:
    """Capture as a CUDA graph, which is one launch in place of thousands."""
    here = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(2):  # what is made at first use must not be captured
            compute()
    here.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on: one of them pins the batches to come.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        losses = compute()
    return CapturedGraph(graph.replay, losses)


class _OfOneShape(NamedTuple):
    image: Tensor
    mask: Tensor
    graph: CapturedGraph


class CapturedGradients:
    """`Gradients`, captured once for each shape of a batch and replayed from then on.

    Each graph keeps memory of its own for all that a step needs; only capturing one waits for the
    device. Regions differ in number from batch to batch, so there is no structure loss. `capture`
    is replaced by tests.
    """

    def __init__(
        self,
        gradients: Gradients,
        capture: Callable[[Callable[[], Losses]], CapturedGraph] = capture_cuda_graph,
    ) -> None:
        self._gradients = gradients
        self._capture = capture
        self._shapes: dict[torch.Size, _OfOneShape] = {}
        self._grads: list[Tensor] = []
        """Those of parameters that a loss reaches; every graph writes to them."""

    def __call__(self, batch: Sample) -> Losses:
        """See `Gradients`."""
        shape = batch.image.shape
        found = self._shapes.get(shape)
        if found is None:
            found = self._shapes[shape] = self._first(batch)
        found.image.copy_(batch.image, non_blocking=True)
        found.mask.copy_(batch.mask, non_blocking=True)
        found.graph.replay()
        total, terms = found.graph.losses
        return Losses(total.clone(), {name: term.clone() for name, term in terms.items()})

    def _first(self, batch: Sample) -> _OfOneShape:
        """The graph of a new shape, after which the network is as it was before."""
        network, device = self._gradients.network, self._gradients.device
        image, mask, regions = (
            x.to(device, copy=True) for x in (batch.image, batch.mask, batch.regions)
        )

        def compute() -> Losses:
            for grad in self._grads:
                grad.zero_()
            return self._gradients.compute(image, mask, regions, 0)

        statistics = [buffer.clone() for buffer in network.buffers()]
        if not self._grads:
            self._gradients(batch)
            self._grads = [x.grad for x in network.parameters() if x.grad is not None]
        graph = self._capture(compute)
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        return _OfOneShape(image, mask, graph)
