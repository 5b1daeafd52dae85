"""The plan on paper: what so many photos a second take, from the processor time of each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scaling.queueing import most_full
from benchmarks.scaling.results import Stages

RATES = (10, 100, 1_000, 100_000)
"""Photos a second."""
INSTANCE = 16
"""Processors of an instance in the plan."""
TIMES = 3.0
"""The plan leaves as much room that 99 of 100 photos take at most so many times what one alone
takes."""
PIXEL_BYTES = 320 * 320 * 4
"""Pixels to a model replica, and its mask back."""
MEGA = 1e6


@dataclass(frozen=True)
class Plan:
    """What one rate of one kind of photo takes."""

    rate: int
    processors: float
    """Busy on average."""
    instances: int
    """Of `INSTANCE` processors, with room for bursts."""
    bottleneck: str
    """The stage with the largest share."""
    share: float
    gigabits: float
    """A second, photos in and masks out."""
    pixel_gigabits: float
    """A second, between servers and model replicas where these are apart."""


def processors(rate: float, stages: Stages) -> dict[str, float]:
    """Busy processors of each stage: rate times processor time."""
    return {
        "HTTP": rate * stages.http_ms / 1000,
        "codec": rate * stages.codec_ms / 1000,
        "network on a CPU": rate * stages.device_ms / 1000,
    }


def plan(rate: int, stages: Stages, fullness: float) -> Plan:
    """Instances whose processors are busy for at most `fullness` of the time."""
    busy = processors(rate, stages)
    total = sum(busy.values())
    bottleneck = max(busy, key=lambda stage: busy[stage])
    bits = 8 * rate / 1e9
    return Plan(
        rate,
        total,
        math.ceil(total / (fullness * INSTANCE)),
        bottleneck,
        busy[bottleneck] / total,
        bits * (stages.upload_bytes + stages.answer_bytes),
        bits * PIXEL_BYTES,
    )


def processor_s_per_million(stages: Stages) -> float:
    """Seconds of one processor that a million photos take."""
    return sum(processors(MEGA, stages).values())


def fullness(places: int, service_ms: Sequence[float] = (1.0,)) -> float:
    """How full so many processors may be; photos of one kind take the same time each."""
    return most_full(places, service_ms, TIMES)
