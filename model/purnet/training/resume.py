"""What a training run is at one moment, kept in a file it can go on from exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purnet.errors import TrainingError, WriteError
from purnet.io import write_atomically, writing

Tensors = dict[str, Tensor]


class AveragedWeights:
    """Exponential moving average of a network's tensors, running statistics included.

    The decay rises to its full value: after t updates it is at most (1 + t) / (10 + t), so that
    what a stage starts from is soon forgotten, however short the stage.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.tensors: Tensors = {
            name: tensor.detach().clone() for name, tensor in network.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module, *, updates: int) -> None:
        """Move towards the network's tensors, `updates` moves having been made before.

        Counters are copied.
        """
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)


@dataclass(slots=True)
class RunState:
    """Position and tensors of a run. All else follows from the recipe and the data."""

    recipe: str
    """The recipe's text form: a run is resumed with the recipe it was started with."""
    pairs: str
    """Digest of the training pairs' names, which the order of samples depends on."""
    stage: int
    """Index of the stage, from 0."""
    iteration: int
    """Iterations of this stage that are done."""
    best_mae: float
    """Lowest validation MAE of this stage so far."""
    network: Tensors
    averaged: Tensors
    optimiser: dict[str, Any]
    rng: list[Tensor]
    """State of torch's generators: the CPU's, then each CUDA device's."""
    stages: list[int] | None = None
    """Indices of the stages that were asked for; None in a file older than this field."""
    init: str | None = None
    """SHA-256 of the file the run starts from, empty for none; None as above."""
    files: str | None = None
    """Digest of names and sizes of all photos and masks; None as above."""

    def save(self, path: Path) -> None:
        """Write the state; a kill at any moment leaves the file before or the file after.

        Raises `WriteError` where it cannot be written.
        """
        try:
            with writing(path):
                write_atomically(path, lambda part: torch.save(asdict(self), part))
        except RuntimeError as error:  # torch's writer says neither what failed nor for which file
            raise WriteError(f"{path} cannot be written; is the disk full?") from error

    @classmethod
    def load(cls, path: Path) -> RunState:
        """Read a state back. Raises `TrainingError` when the file is not one."""
        try:
            fields = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**fields)
        except Exception as error:  # torch.load raises nearly anything on a foreign file
            raise TrainingError(f"{path} is not a resume file of ours: {error}") from error


def rng_state() -> list[Tensor]:
    """State of torch's random generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


def restore_rng(state: list[Tensor]) -> None:
    """Set torch's random generators to a state of `rng_state`."""
    torch.set_rng_state(state[0])
    if torch.cuda.is_available() and len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
