"""What every export starts from: a checkpoint, its reference mask, and the graph to convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from purnet.errors import CheckpointError
from purnet.imaging import UInt8Array
from purnet.inference.parity import MaskDifference, mask_difference, self_check_pixels
from purnet.inference.torch_engine import reference_output, to_masks
from purnet.io import sha256_of
from purnet.network import checkpoint as checkpoints
from purnet.network.purnet import PurNet


class GraphNetwork(nn.Module):
    """The network with what comes before and after: uint8 pixels in, uint8 masks and flags out."""

    def __init__(self, network: PurNet) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, S, S, 3) uint8 -> masks (N, S, S) uint8, finite (N,) bool."""
        return to_masks(self._network.predict(pixels.permute(0, 3, 1, 2).float() / 255))


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A checkpoint made ready to be exported."""

    checkpoint: Path
    graph: GraphNetwork
    variant: str
    input_size: int
    """Side S of the square the network sees, in pixels."""
    sha256: str
    pixels: UInt8Array
    """(1, S, S, 3): the bundled photo."""
    reference: UInt8Array
    """(S, S): its mask by eager float32."""

    @classmethod
    def load(cls, checkpoint: Path) -> ExportSource:
        """Raises `CheckpointError` when it does not load or gives a mask that is not finite."""
        network, info = checkpoints.load_with_info(checkpoint)
        pixels = self_check_pixels(info.input_size)
        expected = reference_output(network, pixels)
        if not expected.finite.all():
            raise CheckpointError(f"{checkpoint}: the mask of the bundled photo is not finite")
        return cls(
            checkpoint=checkpoint,
            graph=GraphNetwork(network).eval(),
            variant=info.variant,
            input_size=info.input_size,
            sha256=sha256_of(checkpoint),
            pixels=pixels,
            reference=expected.masks[0],
        )

    def example(self) -> Tensor:
        """(2, S, S, 3) uint8: a batch to trace the graph with."""
        return torch.from_numpy(self.pixels.repeat(2, axis=0))

    def check(self, mask: UInt8Array) -> MaskDifference:
        """Compare an export's mask of the bundled photo, (S, S), with the reference.

        Raises `CheckpointError` when they are further apart than the parity gate allows.
        """
        difference = mask_difference(mask, self.reference)
        if not difference.passes:
            raise CheckpointError(
                f"{self.checkpoint}: its export differs from eager float32 by {difference}"
            )
        return difference
