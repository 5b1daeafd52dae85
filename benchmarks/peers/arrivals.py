"""When requests are sent, and which photo each carries. The same seed gives the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrival:
    """A request of an open-loop step."""

    due_s: float
    """From the beginning of the step."""
    photo: int


def poisson(rate: float, seconds: float, photos: int, seed: str) -> list[Arrival]:
    """Arrivals at random moments, `rate` a second on average, as those of many strangers."""
    chance = random.Random(seed)
    plan = []
    due_s = chance.expovariate(rate)
    while due_s < seconds:
        plan.append(Arrival(due_s, chance.randrange(photos)))
        due_s += chance.expovariate(rate)
    return plan


def order(photos: int, seed: str, requests: int = 4096) -> list[int]:
    """Photos of a closed-loop step, whose requests have no times of their own."""
    chance = random.Random(seed)
    return [chance.randrange(photos) for _ in range(requests)]
