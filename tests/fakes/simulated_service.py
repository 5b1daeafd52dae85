"""A service of a few stages on a clock of its own, behind the real schedule."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from purnet_serve.inference.schedule import Schedule, ScheduledRequest, ServiceRate, TooLateError


@dataclass
class Seen:
    """One request and what became of it."""

    arrived_s: float
    allowed_s: float
    answered_s: float | None = None
    refused: bool = False
    dropped: bool = False

    @property
    def good(self) -> bool:
        return self.answered_s is not None and self.answered_s <= self.arrived_s + self.allowed_s

    @property
    def late(self) -> bool:
        """Accepted, and not answered in time."""
        return not self.refused and not self.good


@dataclass
class SimulatedService:
    """`streams` images at the same time, each `image_s(now)` seconds; `slots` in all."""

    image_s: Callable[[float], float]
    streams: int = 2
    slots: int = 6
    target_s: float = 5.0
    rate: ServiceRate | None = None
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.target_s)
        self.schedule.rate = self.rate
        self.schedule.slots = self.slots
        self.stopped_until_s = 0.0
        """Nothing that is in the pipeline gets on before."""

    def run(self, arrivals: Iterable[tuple[float, float]]) -> list[Seen]:
        """Serve (time of arrival, seconds allowed) until all have been."""
        numbers = itertools.count()
        events: list[tuple[float, int, Callable[[float], None]]] = []
        queue: deque[tuple[ScheduledRequest, Seen]] = deque()
        waiting: dict[ScheduledRequest, Seen] = {}
        busy = 0
        seen: list[Seen] = []

        def at(time_s: float, do: Callable[[float], None]) -> None:
            heapq.heappush(events, (time_s, next(numbers), do))

        def arrive(now: float, allowed_s: float) -> None:
            request = Seen(now, allowed_s)
            seen.append(request)
            try:
                scheduled = self.schedule.accept(now, now + allowed_s, now + allowed_s)
            except TooLateError:
                request.refused = True
                return
            waiting[scheduled] = request
            self.schedule.mark_ready(now, scheduled)
            give(now)

        def give(now: float) -> None:
            while (scheduled := self.schedule.start_next(now)) is not None:
                request = waiting.pop(scheduled)
                if self.schedule.cannot_finish(now, scheduled):
                    request.dropped = True
                    self.schedule.end(now, scheduled, answered=False)
                    continue
                queue.append((scheduled, request))
            work(now)

        def work(now: float) -> None:
            nonlocal busy
            while queue and busy < self.streams:
                busy += 1
                scheduled, request = queue.popleft()
                ends_s = max(now, self.stopped_until_s) + self.image_s(now)
                at(ends_s, lambda now, s=scheduled, r=request: finish(now, s, r))

        def finish(now: float, scheduled: ScheduledRequest, request: Seen) -> None:
            nonlocal busy
            if now < self.stopped_until_s:  # the worker ended meanwhile: once more
                ends_s = self.stopped_until_s + self.image_s(now)
                at(ends_s, lambda now: finish(now, scheduled, request))
                return
            busy -= 1
            request.answered_s = now
            self.schedule.end(now, scheduled, answered=True)
            give(now)

        for time_s, allowed_s in arrivals:
            at(time_s, lambda now, allowed_s=allowed_s: arrive(now, allowed_s))
        while events:
            now, _, do = heapq.heappop(events)
            do(now)
        assert not self.schedule.active
        assert not self.schedule.waiting
        return seen


def poisson(
    rate: float, seconds: float, allowed_s: float, *, seed: int, start_s: float = 0.0
) -> list[tuple[float, float]]:
    """Arrivals of requests that allow `allowed_s` each."""
    chance, now, found = random.Random(seed), start_s, []
    while (now := now + chance.expovariate(rate)) < start_s + seconds:
        found.append((now, allowed_s))
    return found
