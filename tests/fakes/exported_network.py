"""A network small and lively enough to compare engines on, and its export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from purnet.inference.parity import MaskDifference
from purnet.network.purnet import PurNet
from purnet.network.variants import build

SIZE = 64


@dataclass(frozen=True)
class Exported:
    """A network with random weights whose masks have contrast, and its export."""

    network: PurNet
    checkpoint: Path
    folder: Path
    difference: MaskDifference


def contrasting() -> PurNet:
    """Random weights give flat masks; here logits spread over several units around 0."""
    torch.manual_seed(0)
    network = build("purnet-lite0")
    with torch.no_grad():
        network(torch.rand(4, 3, SIZE, SIZE))
    network.eval()
    with torch.inference_mode():
        logits = network.predict(torch.rand(4, 3, SIZE, SIZE))
    head = network.purification.branches[0].head.logits
    with torch.no_grad():
        head.weight *= 3 / logits.std()
        head.bias.copy_((head.bias - logits.mean()) * 3 / logits.std())
    return network
