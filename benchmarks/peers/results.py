"""What a run measured, as one JSON file, and what the report takes from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.generator import OK, Outcome, Request
from benchmarks.peers.plan import Plan
from pydantic import TypeAdapter

from purnet.io import write_atomically


@dataclass
class Gate:
    """How a peer's masks differ from ours, in levels of 255; None where its network is its own."""

    masks: int
    identical: int | None = None
    worst_mean: float | None = None
    worst_pixel: int | None = None


@dataclass
class About:
    """A peer as it was measured."""

    settings: str
    versions: dict[str, str]
    batches: bool
    gate: Gate | None = None
    smoke_ms: list[float] = field(default_factory=list)
    """Five requests one by one, with `--smoke`."""


@dataclass
class Start:
    """One start of a peer."""

    peer: str
    round: int
    seconds: float
    """Until the first mask."""
    idle_processors: float
    """In use while nothing is asked."""


@dataclass
class Step:
    """One step of load on one peer in one round."""

    peer: str
    round: int
    mix: str
    clients: int | None
    factor: float | None
    offered_rps: float | None
    seconds: float
    statuses: dict[str, int]
    """Of requests due in the counted part."""
    latencies_ms: list[float]
    """Of masks that came for those requests, ascending."""
    came_ms: list[float]
    """Latencies of the masks that came in the counted part, ascending. What waits at its end is
    answered faster than before, since no more is sent: it counts for no rate."""
    cpu_ms_per_mask: float | None
    """Processor time of the server's processes from the step's beginning until they are idle again,
    abandoned work included, over all masks of the step."""
    peak_rss_mib: float
    pss_mib: float
    backlog_s: float | None
    """Seconds until the server was idle again; None where it was not."""
    sent_late_p99_ms: float
    generator_processors: float
    """Processors the generator used; near 1 it measures itself."""

    @property
    def load(self) -> str:
        """Name of the step: `1 client`, `16 clients`, or the factor of our capacity."""
        if self.clients is None:
            return f"{self.factor:g}"
        return f"{self.clients} client{'s' if self.clients > 1 else ''}"

    @property
    def masks_rps(self) -> float:
        """Masks a second."""
        return len(self.came_ms) / self.seconds

    def good_rps(self, within_s: float) -> float:
        """Masks a second that came in time."""
        return sum(ms <= within_s * 1000 for ms in self.came_ms) / self.seconds


@dataclass
class Run:
    """Everything of a run."""

    machine: str
    commit: str
    baseline: str | None
    """Commit of the peer `baseline`."""
    began: str
    plan: Plan
    photos: dict[str, tuple[int, float]]
    """Files of each mix, and their mean size in KiB."""
    capacity_rps: dict[str, float]
    """Ours with 16 clients in each mix: what factors are of."""
    peers: dict[str, About] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it whole."""
        text = TypeAdapter(Run).dump_json(self, indent=1)
        write_atomically(path, lambda part: part.write_bytes(text))


def load_run(path: Path) -> Run:
    """Read what `Run.save` wrote. Raises pydantic's `ValidationError` for anything else."""
    return TypeAdapter(Run).validate_json(path.read_bytes())


def counted(
    requests: Iterable[Request], ramp_s: float, seconds: float
) -> tuple[dict[str, int], list[float], list[float]]:
    """`Step.statuses`, `Step.latencies_ms` and `Step.came_ms` of a step."""
    ends_s = ramp_s + seconds
    everything = list(requests)
    due = [request for request in everything if ramp_s <= request.due_s < ends_s]
    came = [request for request in everything if ramp_s <= request.answered_s < ends_s]
    return dict(Counter(request.status for request in due)), _latencies(due), _latencies(came)


def _latencies(requests: list[Request]) -> list[float]:
    return sorted(
        round((request.answered_s - request.due_s) * 1000, 1)
        for request in requests
        if request.status == OK
    )


def sent_late_p99_ms(outcome: Outcome) -> float:
    """How late the generator was."""
    late = sorted(request.sent_late_s * 1000 for request in outcome.requests)
    return percentile(late, 99) or 0.0


def percentile(ascending: Sequence[float], percent: float) -> float | None:
    """Nearest rank: the least value that so many per cent do not exceed; None of nothing."""
    if not ascending:
        return None
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]
