"""What a run keeps on disk: the state it can go on from exactly, its log, and curves of that."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purnet.errors import TrainingError, WriteError
from purnet.io import write_atomically, writing

Tensors = dict[str, Tensor]


@dataclass(slots=True)
class RunState:
    """Position and tensors of a run. All else follows from the recipe and the data."""

    recipe: str
    """Digest of the recipe: a run is resumed with the recipe it was started with."""
    variant: str
    """The recipe's, for who reads weights out of this file."""
    data: str
    """Digest of the names and sizes of all photos and masks, in order."""
    stages: list[int]
    """Indices of the stages that were asked for, from 0."""
    init: str
    """SHA-256 of the file the run starts from, empty for none."""
    stage: int
    """Index of the stage that is being trained."""
    iteration: int
    """Iterations of this stage that are done."""
    best_mae: float
    """Lowest validation MAE of this stage so far."""
    network: Tensors
    averaged: Tensors
    optimizer: dict[str, Any]
    rng: list[Tensor]
    """State of torch's generators: the CPU's, then that of the CUDA device the run trained on."""
    logits_scale: float = 1.0
    """What the logits of the initial weights were scaled by, for who reads weights out of this."""

    def save(self, path: Path) -> None:
        """Write the state; a kill at any moment leaves the file before or the file after.

        Raises `WriteError` where it cannot be written.
        """
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        try:
            with writing(path):
                write_atomically(path, lambda part: torch.save(content, part))
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


def rng_state(device: torch.device) -> list[Tensor]:
    """State of torch's random generators on the CPU and, where it is another, on `device`."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def restore_rng(state: list[Tensor], device: torch.device) -> None:
    """Set torch's random generators to a state of `rng_state`, saved on this device or another."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


# --- the log -----------------------------------------------------------------------------------

Entry = dict[str, Any]


class RunLog:
    """One JSON object a line, `{"stage", "iteration", ...}`, in a file that only grows.

    Only a resumed run shortens it, to where it goes on. Raises `WriteError` where it cannot be
    written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Entry) -> None:
        """Add one line."""
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[Entry]:
        """Every whole line; a line that a kill cut short is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def rewind(self, stage: int, iteration: int) -> None:
        """Drop what was logged after this point: a resumed run writes it again."""
        kept = [e for e in self.entries() if (e["stage"], e["iteration"]) <= (stage, iteration)]
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        with writing(self.path):
            write_atomically(self.path, lambda part: part.write_text(text))


def plot_curves(entries: list[Entry], path: Path) -> None:
    """Draw training losses and validation scores over iterations into a PNG.

    Draws nothing where matplotlib is not installed. Raises `WriteError` where the file cannot be
    written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    training, validation = figure.subplots(1, 2)
    starts = _stage_starts(entries)

    def at(entry: Entry) -> int:
        return int(starts[entry["stage"]] + entry["iteration"])

    steps = [entry for entry in entries if "losses" in entry]
    for name in sorted({name for entry in steps for name in entry["losses"]}):
        points = [(at(e), e["losses"][name]) for e in steps if name in e["losses"]]
        training.plot(*zip(*points, strict=True), label=name, linewidth=0.8)
    checks = [entry for entry in entries if "mae" in entry]
    for name in ("mae", "max_f"):
        validation.plot([at(e) for e in checks], [e[name] for e in checks], marker=".", label=name)
    for axes, title in ((training, "training losses"), (validation, "validation")):
        axes.set(title=title, xlabel="iteration")
        if axes.lines:
            axes.legend()
        for start in list(starts.values())[1:]:
            axes.axvline(start, color="grey", linewidth=0.6, linestyle=":")
        axes.grid(alpha=0.3)
    with writing(path):
        write_atomically(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def _stage_starts(entries: list[Entry]) -> dict[int, int]:
    """Iterations done before each stage, from the last iteration seen of those before it."""
    starts: dict[int, int] = {}
    done = 0
    for stage in sorted({entry["stage"] for entry in entries}):
        starts[stage] = done
        done += max(entry["iteration"] for entry in entries if entry["stage"] == stage)
    return starts
