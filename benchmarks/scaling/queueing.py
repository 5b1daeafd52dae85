"""How long requests wait, by a model: so many places, Poisson arrivals, first come first served.

Two ways, that must agree on the mean. The formula of Allen and Cunneen (A. O. Allen, "Probability,
Statistics, and Queueing Theory with Computer Science Applications", 2nd ed., 1990, section 5.3.4)
is exact for one place (Pollaczek and Khinchine) and for exponential times (Erlang). The simulation
(recursion of Kiefer and Wolfowitz, "On the theory of queues with many servers", 1955) gives
percentiles as well, and refuses as the service does.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.results import percentile

REQUESTS = 40_000
"""Of a simulation; the first tenth fills the queue and does not count."""
_MAX_UTILISATION = 0.995


@dataclass(frozen=True)
class Predicted:
    """Seconds from arrival to answer of those that were accepted."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    refused: float
    """Part of the arrivals that were refused."""


def waits_probability(places: int, busy: float) -> float:
    """Probability that an arrival has to wait (Erlang's C formula); `busy` places on average."""
    if not 0 <= busy < places:
        raise ValueError(f"{busy} of {places} places busy: no queue is stable so")
    blocked = 1.0  # Erlang's B formula, one place after the other
    for number in range(1, places + 1):
        blocked = busy * blocked / (number + busy * blocked)
    return blocked / (1 - busy / places * (1 - blocked))


def mean_wait_s(rate: float, places: int, service_s: Sequence[float]) -> float:
    """Mean seconds in the queue, by Allen and Cunneen; arrivals are Poisson."""
    mean_s = statistics.fmean(service_s)
    variability = statistics.pvariance(service_s) / mean_s**2  # squared coefficient of variation
    busy = rate * mean_s
    return waits_probability(places, busy) * mean_s / (places - busy) * (1 + variability) / 2


def simulate(
    rate: float,
    places: int,
    service_s: Sequence[float],
    *,
    target_s: float = float("inf"),
    requests: int = REQUESTS,
    seed: int = 1,
) -> Predicted:
    """Serve Poisson arrivals, each for a time drawn from `service_s`.

    Who would not be answered within `target_s` by the mean of these times is refused.
    """
    chance = random.Random(seed)
    mean_s = statistics.fmean(service_s)
    free_s = [0.0] * places
    taken: list[float] = []
    refused = now_s = 0.0
    counted = requests - requests // 10
    for number in range(requests):
        now_s += chance.expovariate(rate)
        counts = number >= requests - counted
        begins_s = max(now_s, free_s[0])
        if begins_s - now_s + mean_s > target_s:
            refused += counts
            continue
        ends_s = begins_s + chance.choice(service_s)
        heapq.heapreplace(free_s, ends_s)
        if counts:
            taken.append(ends_s - now_s)
    taken.sort()
    if not taken:
        raise ValueError(f"nothing is answered within {target_s} s")
    p50_s, p95_s, p99_s = (percentile(taken, percent) or 0.0 for percent in (50, 95, 99))
    return Predicted(statistics.fmean(taken), p50_s, p95_s, p99_s, refused / counted)


def most_full(places: int, service_s: Sequence[float], times: float) -> float:
    """The part of the places that may be busy so that 99 % take at most `times` the mean time.

    To one hundredth, by the simulation.
    """
    mean_s = statistics.fmean(service_s)
    low, high = 0.0, _MAX_UTILISATION
    while high - low > 0.01:
        middle = (low + high) / 2
        predicted = simulate(middle * places / mean_s, places, service_s)
        low, high = (middle, high) if predicted.p99_s <= times * mean_s else (low, middle)
    return low
