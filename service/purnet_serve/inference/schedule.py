"""Who is answered next, and who can be answered in time. No clock and no asyncio: times are given.

The way from a decode to an encoded answer is one pipeline with a number of places. Requests are
booked before anything of them is read; they wait for a place in the order in which they are due.
How fast places become free is learnt from the requests that were answered.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

WEIGHT = 0.1
"""Of the newest answer in what is known of the speed: about the last ten answers count."""
IN_TIME = 0.995
"""Part of the requests that must take no longer than was expected of them."""
MARGIN_STEP = 0.05
"""By how much of the expected time one request that took longer makes the next ones be expected."""
MOST_MARGIN = 2.0
"""So that at least half of the time that clients allow is used, whatever was late."""
FIRST_MARGIN = 1.2
LEAST_LATENCIES = 3.0
"""The target is at least as many times what a request takes that has the service for itself."""


@dataclass(slots=True)
class AnswerRate:
    """How fast requests are answered. Starts from what a device says and learns from each answer.

    A pipeline that holds `active` requests for `pipeline_s` each gives an answer every
    `pipeline_s / active` seconds (Little, "A Proof for the Queuing Formula L = λW", 1961). If it is
    full, that is as fast as it can; if not, it could be faster, but for the time that one request
    needs in it. So each answer bounds both values from below and above, and exactly when it counts:
    while requests wait.
    """

    interval_s: float
    """Seconds from one answer to the next while requests wait."""
    latency_s: float
    """Seconds in the pipeline of a request that has it for itself."""
    margin: float = FIRST_MARGIN
    """What expected times are multiplied by, so that nearly all requests take no longer."""

    def answered(self, pipeline_s: float, active: float, places: float) -> None:
        """Learn from a request: its seconds in a pipeline with `active` of `places` taken.

        Its part of them, `shared_s`, is what an answer takes if the pipeline is full and more if it
        is not; and one request takes at least as long as its part.
        """
        shared_s = pipeline_s / active
        self.interval_s = _closer(self.interval_s, pipeline_s / places, shared_s)
        self.latency_s = _closer(self.latency_s, shared_s, pipeline_s)

    def learn_margin(self, took_s: float, expected_s: float) -> None:
        """Learn from what a request took, and was expected to take without `margin`.

        A stochastic approximation of the quantile `IN_TIME` (Robbins and Monro, 1951).
        """
        late = took_s > self.margin * expected_s
        step = IN_TIME if late else IN_TIME - 1
        self.margin = min(MOST_MARGIN, max(1.0, self.margin + MARGIN_STEP * step))

    def until_answered_s(self, ahead: int) -> float:
        """Seconds until a request is answered that has `ahead` others before it."""
        return self.margin * (self.latency_s + ahead * self.interval_s)


class TooLateError(Exception):
    """A request was not booked: it would be late, or would make an accepted one late."""

    def __init__(self, estimate_s: float, allowed_s: float) -> None:
        super().__init__(f"{estimate_s:.3f} s of {allowed_s:.3f} s")
        self.estimate_s = estimate_s
        """Seconds from now until it could be answered."""
        self.allowed_s = allowed_s
        """Seconds from now until it is due."""


@dataclass(eq=False, slots=True)
class Booking:
    """A request that was accepted. Times are seconds on the caller's clock."""

    due_s: float
    """When it is promised to be answered."""
    deadline_s: float
    """When nobody waits for it any longer; not before `due_s`."""
    order_s: float
    """Its place in the order: when it is due, or before, for one that may wait for long."""
    beyond_target: bool
    """Whether it may wait for longer than the target."""
    expected_s: float
    """Seconds it is expected to take, without `AnswerRate.margin`; 0: unknown."""
    asked_s: float | None = None
    """When it became ready to begin: its upload is here."""
    skipped: bool = False
    """Whether it was not ready when it could have begun. Then nobody waits for it to be."""
    began_s: float | None = None
    _integral_at_begin: float = field(default=0.0, repr=False)


class Schedule:
    """Bookings in the order in which they are due, and the places in the pipeline.

    A request whose time is longer than the target may wait, but would take the place of those that
    may not, if enough of them came first. So such requests are planned at every second answer, and
    one that would be late at that pace is refused, unless all that wait are answered within the
    target anyway.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self.rate: AnswerRate | None = None
        """None: nothing is known yet, and every request is accepted."""
        self.places: int | None = None
        """Requests that may be in the pipeline at the same time; None: any number."""
        self.active = 0
        """Requests that are in it."""
        self._waiting: list[Booking] = []
        self._integral = 0.0
        """Of `active` over time, until `_counted_s`."""
        self._counted_s = 0.0

    @property
    def waiting(self) -> int:
        """Requests that were booked and have not begun."""
        return len(self._waiting)

    @property
    def ahead(self) -> int:
        """Requests that a new one would wait for if it were due last."""
        # Copied in one step of the interpreter: the metrics server reads from its own thread.
        return self.active + sum(not other.skipped for other in tuple(self._waiting))

    @property
    def target_s(self) -> float:
        """Seconds from arrival to answer that a request is promised which names none."""
        latency_s = 0.0 if self.rate is None else self.rate.latency_s
        return max(self._target_s, LEAST_LATENCIES * latency_s)

    def estimate_s(self) -> float:
        """Seconds until a request would be answered that came now and was due last."""
        if self.rate is None:
            return 0.0
        return self.rate.until_answered_s(self.ahead)

    def book(self, now: float, due_s: float, deadline_s: float) -> Booking:
        """Accept a request. Raises `TooLateError` if it, or one accepted before, would be late.

        One that is the only one is always accepted: the service can do nothing better meanwhile,
        and would not learn that it has become faster.
        """
        rate, beyond_target = self.rate, due_s - now > self.target_s
        planned_s = due_s if rate is None or not beyond_target else self._plan(now, rate)
        order_s = min(due_s, planned_s)
        place = bisect_right(self._waiting, order_s, key=_order)
        booking = Booking(due_s, deadline_s, order_s, beyond_target, 0.0)
        if rate is not None:
            ahead = self.active + sum(not self._waiting[index].skipped for index in range(place))
            if self.ahead:
                self._check_pace(now, due_s, planned_s)
                self._check(now, booking, place, ahead, rate)
            booking.expected_s = rate.latency_s + ahead * rate.interval_s
            for index in range(place, len(self._waiting)):
                self._waiting[index].expected_s += rate.interval_s
        self._waiting.insert(place, booking)
        return booking

    def ask(self, now: float, booking: Booking) -> None:
        """A booked request is ready to begin."""
        booking.asked_s = now
        booking.skipped = False

    def next(self, now: float) -> Booking | None:
        """Take the next request that is ready into the pipeline, if there is a place."""
        if self.places is not None and self.active >= self.places:
            return None
        for index, booking in enumerate(self._waiting):
            if booking.asked_s is not None:
                del self._waiting[index]
                self._count(now, +1)
                booking.began_s = now
                booking._integral_at_begin = self._integral
                return booking
            booking.skipped = True
        return None

    def cannot_finish(self, now: float, booking: Booking) -> bool:
        """Whether a request in the pipeline has no more time than one takes at least.

        Never the only one there: it is tried, to learn whether the service has become faster.
        """
        if self.rate is None or self.active <= 1:
            return False
        return now + self.rate.latency_s > booking.deadline_s

    def end(self, now: float, booking: Booking, *, answered: bool) -> None:
        """A request leaves, answered or not, from wherever it is."""
        if booking.began_s is None:
            self._waiting.remove(booking)
            return
        self._count(now, -1)
        if answered and booking.asked_s is not None and now > booking.began_s:
            self._learn(now, booking, booking.asked_s, booking.began_s)

    def _plan(self, now: float, rate: AnswerRate) -> float:
        """After the target, and two answers after the last other one of those that may wait."""
        planned = (
            other.order_s for other in self._waiting if other.beyond_target and not other.skipped
        )
        return max(now + self.target_s, max(planned, default=0.0) + 2 * rate.interval_s)

    def _check_pace(self, now: float, due_s: float, planned_s: float) -> None:
        """Raises `TooLateError` if a request is due before it is planned and others wait for long.

        While all are answered within the target, it takes no place that another would need.
        """
        if planned_s > due_s and self.estimate_s() > self.target_s:
            raise TooLateError(planned_s - now, due_s - now)

    def _check(
        self, now: float, booking: Booking, place: int, ahead: int, rate: AnswerRate
    ) -> None:
        """Raises `TooLateError` if the booking, at this place, or one after it would be late."""
        allowed_s = booking.due_s - now
        estimate_s = rate.until_answered_s(ahead)
        if estimate_s > allowed_s:
            raise TooLateError(estimate_s, allowed_s)
        interval_s = rate.margin * rate.interval_s
        without_s = now + rate.until_answered_s(ahead)
        for index in range(place, len(self._waiting)):
            other = self._waiting[index]
            if other.skipped:
                continue
            # One that is late already does not become so by this request.
            if without_s <= other.due_s < without_s + interval_s:
                raise TooLateError(max(without_s + interval_s - now, allowed_s), allowed_s)
            without_s += interval_s

    def _learn(self, now: float, booking: Booking, asked_s: float, began_s: float) -> None:
        pipeline_s = now - began_s
        active = max(1.0, (self._integral - booking._integral_at_begin) / pipeline_s)
        places = max(active, float(self.places or active))
        if self.rate is None:
            self.rate = AnswerRate(pipeline_s / active, pipeline_s)
        else:
            self.rate.answered(pipeline_s, active, places)
        # One that hardly waited says what one photo costs, not how well a wait is foretold.
        if booking.expected_s > 2 * self.rate.latency_s:
            # Without the time in which its upload came: that is up to the client.
            self.rate.learn_margin(now - asked_s, booking.expected_s)

    def _count(self, now: float, change: int) -> None:
        self._integral += self.active * (now - self._counted_s)
        self._counted_s = now
        self.active += change


def _order(booking: Booking) -> float:
    return booking.order_s


def _closer(value: float, least: float, most: float) -> float:
    """A value that is between two bounds, or on its way there."""
    return value + WEIGHT * (min(max(value, least), most) - value)
