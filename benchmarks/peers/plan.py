"""What is to be measured, and where."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

MIXES = ("small", "12mp", "mixed")
SLOWER = {"small": 1.0, "12mp": 2.5, "mixed": 1.5}
"""How many times as long the steps of a mix are: few large photos come a second."""

CLIENTS = 16
"""Of the closed loop that finds a capacity."""
CLOSED_RAMP_S = 1.0
WARM_S = 3.0
"""Load before the first step, so that caches are filled and clocks have risen."""


@dataclass
class Plan:
    """What was asked for."""

    peers: list[str]
    mode: str
    """`core0`: the server alone on the first processor; `both`: everything on all of them."""
    tuning: str
    """`default`, or `deadline`: each peer with what it has against answers that come late."""
    mixes: list[str]
    factors: list[float]
    """Of our capacity: rates of the open-loop steps."""
    rounds: int
    seconds: float
    ramp_s: float
    """Part of an open-loop step that is not counted."""
    good_s: float
    """An answer within this is good."""
    timeout_s: float
    """Clients give up after this."""
    patience_s: float
    """Most seconds to wait, after a step, for work that nobody waits for any more."""


@dataclass(frozen=True)
class Places:
    """Which processors the server and the load generator have."""

    server: set[int]
    generator: set[int]


def places(mode: str) -> Places:
    """`core0` or `both`, of the processors this process may use."""
    everything = os.sched_getaffinity(0)
    if mode == "both":
        return Places(everything, everything)
    first, *others = sorted(everything)
    if not others:
        raise SystemExit("--mode core0 needs two processors")
    return Places({first}, set(others))


def about_seconds(plan: Plan) -> float:
    """How long a run takes if no server has a backlog: starts, gates and pauses are guesses."""
    closed, opened = 2 if plan.tuning == "default" else 1, len(plan.factors)
    slower = sum(SLOWER[mix] for mix in plan.mixes)
    counted = slower * (WARM_S + plan.seconds * (closed - 0.5 + opened))
    ramps = len(plan.mixes) * (closed * CLOSED_RAMP_S + opened * plan.ramp_s)
    pauses = 1.5 * len(plan.mixes) * (opened + closed + 1)
    visits = plan.rounds * len(plan.peers)
    return 15 * (len(plan.peers) + 1) + (visits + 0.3) * (12 + counted + ramps + pauses)


def machine() -> str:
    """The processor's name, and how many there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} processors"
