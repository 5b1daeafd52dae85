"""Which request is started next, and which can be answered in time. No clock, no asyncio.

Decoding, inference and encoding are one pipeline that holds a limited number of requests. A request
is accepted before anything of its body is read. Accepted requests wait in the order in which they
are due until the pipeline has a free slot. How fast slots become free is learnt from the requests
that were answered. The caller gives the current time. This is earliest-deadline-first (EDF)
scheduling with admission control: `due_s` is the soft deadline, `deadline_s` the hard one.
"""

from __future__ import annotations

from bisect import bisect_right
from copy import copy
from dataclasses import dataclass, field
from itertools import islice

EMA_WEIGHT = 0.1
"""Weight of the newest answer in the moving averages of `ServiceRate`: about the last ten count."""
TARGET_QUANTILE = 0.995
"""Fraction of the requests that must take no longer than was expected of them."""
MARGIN_STEP = 0.05
"""Step by which `ServiceRate.margin` rises after a request that took longer than expected."""
MAX_MARGIN = 2.0
"""Upper bound of `ServiceRate.margin`. Above it, more than half of the time that clients allow
would not be used."""
INITIAL_MARGIN = 1.2
MIN_TARGET_LATENCIES = 3.0
"""The target is never below this multiple of the idle latency."""


@dataclass(slots=True)
class ServiceRate:
    """How fast requests are answered: first what the devices measured, then learnt.

    A pipeline that holds `active` requests for `pipeline_s` each gives an answer every
    `pipeline_s / active` seconds (Little, "A Proof for the Queuing Formula L = λW", 1961). Each
    answer gives an upper and a lower bound for `interval_s` and for `latency_s`. Those of
    `interval_s` are equal while the pipeline is full, those of `latency_s` for a lone request.
    """

    interval_s: float
    """Seconds from one answer to the next while the pipeline is full."""
    latency_s: float
    """Idle latency: seconds that a request takes which has the pipeline for itself."""
    margin: float = INITIAL_MARGIN
    """What expected times are multiplied by, so that nearly all requests take no longer."""

    def learn(self, pipeline_s: float, active: float, slots: float) -> None:
        """Learn from an answer: its seconds in a pipeline that held `active` requests on average.

        `pipeline_s / active` is an upper bound of the interval, since a pipeline with free slots
        could be faster, and a lower bound of the idle latency.
        """
        quotient_s = pipeline_s / active
        self.interval_s = _moved(self.interval_s, pipeline_s / slots, quotient_s)
        self.latency_s = _moved(self.latency_s, quotient_s, pipeline_s)

    def learn_margin(self, took_s: float, expected_s: float) -> None:
        """Learn from what a request took, and was expected to take without `margin`.

        A stochastic approximation of `TARGET_QUANTILE` (Robbins and Monro, 1951).
        """
        late = took_s > self.margin * expected_s
        step = TARGET_QUANTILE if late else TARGET_QUANTILE - 1
        self.margin = min(MAX_MARGIN, max(1.0, self.margin + MARGIN_STEP * step))

    def estimate_s(self, ahead: int) -> float:
        """Seconds until a request is answered that has `ahead` others before it."""
        return self.margin * (self.latency_s + ahead * self.interval_s)


class TooLateError(Exception):
    """A request was not accepted: it would be late, or would make an accepted one late."""

    def __init__(self, estimate_s: float, allowed_s: float) -> None:
        super().__init__(f"{estimate_s:.3f} s of {allowed_s:.3f} s")
        self.estimate_s = estimate_s
        """Seconds from now until it could be answered, behind the last request that it would make
        late."""
        self.allowed_s = allowed_s
        """Seconds from now until it is due."""


@dataclass(eq=False, slots=True)
class ScheduledRequest:
    """A request that was accepted. Times are seconds on the caller's clock."""

    due_s: float
    """When it is promised to be answered."""
    deadline_s: float
    """When nobody waits for it any longer; not before `due_s`."""
    order_s: float
    """What waiting requests are sorted by: `due_s`, or earlier for one that may wait for long."""
    beyond_target: bool
    """Whether it may wait for longer than the target."""
    ahead: int
    """Requests that are answered before it, of those that were there when it was accepted."""
    rate: ServiceRate | None
    """As it was known then, or when a late upload was complete; None: unknown."""
    ready_s: float | None = None
    """When its upload was complete."""
    skipped: bool = False
    """Whether its upload was incomplete when a slot was free; others passed it."""
    started_s: float | None = None
    """When it was given a slot of the pipeline."""
    _active_seconds_at_start: float = field(default=0.0, repr=False)

    @property
    def expected_s(self) -> float | None:
        """Seconds it is expected to take, without `ServiceRate.margin`; None: unknown."""
        if self.rate is None:
            return None
        return self.rate.latency_s + self.ahead * self.rate.interval_s


class Schedule:
    """Accepted requests in the order in which they are due, and the slots of the pipeline.

    A request whose time is longer than the target may wait, but many such requests that came first
    would delay those that may not. So they are given at most every second answer. One that would
    be late at that rate is refused, unless all waiting requests are answered within the target
    anyway.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self.rate: ServiceRate | None = None
        """None: nothing is known yet, and every request is accepted."""
        self.slots: int | None = None
        """Requests that may be in the pipeline at the same time; None: any number."""
        self.active = 0
        """Requests that are in the pipeline."""
        self._waiting: list[ScheduledRequest] = []
        self._active_seconds = 0.0
        """Integral of `active` over time, until `_counted_s`."""
        self._counted_s = 0.0

    @property
    def waiting(self) -> int:
        """Requests that were accepted and have not started."""
        return len(self._waiting)

    @property
    def ahead(self) -> int:
        """Requests that a new one would wait for if it were due last."""
        return self._ahead_of(len(self._waiting))

    @property
    def target_s(self) -> float:
        """Seconds from arrival to answer that a request is promised which names none."""
        latency_s = 0.0 if self.rate is None else self.rate.latency_s
        return max(self._target_s, MIN_TARGET_LATENCIES * latency_s)

    def estimate_s(self) -> float:
        """Seconds until a request would be answered that came now and was due last."""
        return 0.0 if self.rate is None else self.rate.estimate_s(self.ahead)

    def accept(self, now: float, due_s: float, deadline_s: float) -> ScheduledRequest:
        """Accept a request. Raises `TooLateError` if it, or one accepted before, would be late.

        One that is the only one is always accepted: the service can do nothing better meanwhile,
        and would not learn that it has become faster.
        """
        rate, beyond_target = self.rate, due_s - now > self.target_s
        planned_s = due_s if rate is None or not beyond_target else self._plan(now, rate)
        order_s = min(due_s, planned_s)
        index = bisect_right(self._waiting, order_s, key=_order)
        scheduled = ScheduledRequest(
            due_s, deadline_s, order_s, beyond_target, self._ahead_of(index), copy(rate)
        )
        if rate is not None and self.ahead:
            self._check_rate(now, due_s, planned_s)
            self._check(now, scheduled, index, rate)
        self._shift_ahead(index, 1)
        self._waiting.insert(index, scheduled)
        return scheduled

    def mark_ready(self, now: float, scheduled: ScheduledRequest) -> None:
        """The upload of an accepted request is complete."""
        scheduled.ready_s = now
        if scheduled.skipped:
            # Others have passed it, so what it is expected to take is as if it came now.
            scheduled.skipped = False
            index = self._waiting.index(scheduled)
            scheduled.ahead, scheduled.rate = self._ahead_of(index), copy(self.rate)
            self._shift_ahead(index + 1, 1)

    def start_next(self, now: float) -> ScheduledRequest | None:
        """Give a free slot, if there is one, to the next request that is ready."""
        if self.slots is not None and self.active >= self.slots:
            return None
        for index, scheduled in enumerate(self._waiting):
            if scheduled.ready_s is not None:
                del self._waiting[index]
                self._change_active(now, +1)
                scheduled.started_s = now
                scheduled._active_seconds_at_start = self._active_seconds
                return scheduled
            if not scheduled.skipped:
                scheduled.skipped = True
                self._shift_ahead(index + 1, -1)
        return None

    def cannot_finish(self, now: float, scheduled: ScheduledRequest) -> bool:
        """Whether a request in the pipeline has less time left than the idle latency.

        Never the only one there: it is tried, to learn whether the service has become faster.
        """
        if self.rate is None or self.active <= 1:
            return False
        return now + self.rate.latency_s > scheduled.deadline_s

    def end(self, now: float, scheduled: ScheduledRequest, *, answered: bool) -> None:
        """A request leaves, answered or not, the pipeline or those that wait."""
        if scheduled.started_s is None:
            index = self._waiting.index(scheduled)
            del self._waiting[index]
            if not scheduled.skipped:
                self._shift_ahead(index, -1)
            return
        self._change_active(now, -1)
        # `ahead` counts requests answered before it, so one that was answered stays counted.
        if not answered:
            self._shift_ahead(0, -1)
        elif scheduled.ready_s is not None and now > scheduled.started_s:
            self._learn(now, scheduled, scheduled.ready_s, scheduled.started_s)

    def _plan(self, now: float, rate: ServiceRate) -> float:
        """When a request that may wait for long is planned to be answered.

        Not before the target, and two intervals after the previous such request.
        """
        planned = (
            other.order_s for other in self._waiting if other.beyond_target and not other.skipped
        )
        return max(now + self.target_s, max(planned, default=0.0) + 2 * rate.interval_s)

    def _check_rate(self, now: float, due_s: float, planned_s: float) -> None:
        """Raises `TooLateError` if a request is due before it is planned and others wait for long.

        While all are answered within the target, it delays no other.
        """
        if planned_s > due_s and self.estimate_s() > self.target_s:
            raise TooLateError(planned_s - now, due_s - now)

    def _check(
        self, now: float, scheduled: ScheduledRequest, index: int, rate: ServiceRate
    ) -> None:
        """Raises `TooLateError` if the request, inserted at `index`, or one behind it is late."""
        allowed_s = scheduled.due_s - now
        estimate_s = rate.estimate_s(scheduled.ahead)
        if estimate_s > allowed_s:
            raise TooLateError(estimate_s, allowed_s)
        interval_s = rate.margin * rate.interval_s
        without_s, behind_last_s = now + estimate_s, 0.0
        for other in islice(self._waiting, index, None):
            if other.skipped:
                continue
            # One that is late already does not become so by this request.
            if without_s <= other.due_s < without_s + interval_s:
                behind_last_s = without_s + interval_s
            without_s += interval_s
        if behind_last_s:
            raise TooLateError(max(behind_last_s - now, allowed_s), allowed_s)

    def _ahead_of(self, index: int) -> int:
        """Requests that are answered before one that waits at this place."""
        # Copied in one step of the interpreter: the metrics server reads from its own thread.
        return self.active + sum(not other.skipped for other in self._waiting[:index])

    def _shift_ahead(self, index: int, requests: int) -> None:
        """So many requests more, or fewer, are ahead of those that wait from `index` on."""
        for other in islice(self._waiting, index, None):
            other.ahead += requests

    def _learn(
        self, now: float, scheduled: ScheduledRequest, ready_s: float, started_s: float
    ) -> None:
        pipeline_s = now - started_s
        active_seconds = self._active_seconds - scheduled._active_seconds_at_start
        active = max(1.0, active_seconds / pipeline_s)
        slots = max(active, float(self.slots or active))
        if self.rate is None:
            self.rate = ServiceRate(pipeline_s / active, pipeline_s)
        else:
            self.rate.learn(pipeline_s, active, slots)
        # One that hardly waited says nothing about how well waits are estimated.
        if scheduled.expected_s is not None and scheduled.expected_s > 2 * self.rate.latency_s:
            # Without the time of its upload: that depends on the client.
            self.rate.learn_margin(now - ready_s, scheduled.expected_s)

    def _change_active(self, now: float, change: int) -> None:
        self._active_seconds += self.active * (now - self._counted_s)
        self._counted_s = now
        self.active += change


def _order(scheduled: ScheduledRequest) -> float:
    return scheduled.order_s


def _moved(value: float, lower: float, upper: float) -> float:
    """The value, moved by `EMA_WEIGHT` towards the nearest between two bounds."""
    return value + EMA_WEIGHT * (min(max(value, lower), upper) - value)
