"""A run's log: one JSON object a line, and the curves drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from purnet.io import write_atomically, writing

Entry = dict[str, Any]


class RunLog:
    """Lines `{"stage", "iteration", ...}` in a file that only grows, but for a resumed run.

    Raises `WriteError` where it cannot be written.
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

    Raises `WriteError` where it cannot be written.
    """
    from matplotlib.figure import Figure

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
        figure.savefig(path, dpi=110)


def _stage_starts(entries: list[Entry]) -> dict[int, int]:
    """Iterations done before each stage, from the last iteration seen of those before it."""
    starts: dict[int, int] = {}
    done = 0
    for stage in sorted({entry["stage"] for entry in entries}):
        starts[stage] = done
        done += max(entry["iteration"] for entry in entries if entry["stage"] == stage)
    return starts
