"""Which request is worked on now: places in the pipeline, given in the order of due times.

A request is booked before a byte of its body is asked for, and refused if it could not be answered
in time. It begins to be decoded when it is its turn, so all waiting is in one place and one order
(`purnet_serve.inference.schedule`). Runs on the event loop alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from purnet_serve.errors import DeadlineError, WouldBeLateError
from purnet_serve.http.request import RequestContext
from purnet_serve.inference.backend import Pace
from purnet_serve.inference.schedule import AnswerRate, Booking, Schedule, TooLateError
from purnet_serve.observability.labels import Stage


class Turns:
    """Gives requests their turns."""

    def __init__(
        self, target_latency_s: float, pace: Callable[[], Pace | None], decode_threads: int
    ) -> None:
        self.schedule = Schedule(target_latency_s)
        self._pace = pace
        self._decode_threads = decode_threads
        self._calls: dict[Booking, asyncio.Future[None]] = {}
        """Futures of the requests that wait for their turn."""

    def book(self, request: RequestContext, timeout_s: float | None) -> None:
        """Accept an admitted request; `timeout_s` is what its client asked for, if it did.

        Raises `WouldBeLateError`.
        """
        schedule, now = self.schedule, asyncio.get_running_loop().time()
        self._keep_pace()
        target_s = schedule.target_s
        due = min(request.deadline, request.arrived + target_s)
        if timeout_s is not None:
            due = request.deadline
        try:
            request.booking = schedule.book(now, due, request.deadline)
        except TooLateError as late:
            raise WouldBeLateError(
                f"The answer would take about {late.estimate_s:.2f} s; this request allows "
                f"{late.allowed_s:.2f} s.",
                limit=round(late.allowed_s, 3),
                actual=round(late.estimate_s, 3),
                retry_after_s=max(1, math.ceil(late.estimate_s - late.allowed_s)),
            ) from None

    @asynccontextmanager
    async def turn(self, request: RequestContext) -> AsyncIterator[None]:
        """Wait for the request's turn; hold its place until the block ends.

        A request has one turn. Raises `DeadlineError` when its time is over before, or is not
        enough any more, and `RuntimeError` for a request that was not booked.
        """
        loop, booking = asyncio.get_running_loop(), request.booking
        if booking is None:
            raise RuntimeError(f"{request.method} {request.path!r} was not booked")
        request.booking = None
        request.stage = Stage.QUEUE
        asked = loop.time()
        answered = False
        self.schedule.ask(asked, booking)
        try:
            self._give(asked)
            if booking.began_s is None:
                await self._called(booking, request.deadline)
            now = loop.time()
            request.turn_s = now - asked
            if self.schedule.cannot_finish(now, booking):
                raise DeadlineError("Too little of the request's time is left to answer it.")
            yield
            answered = True
        finally:
            self._end(booking, answered=answered)

    def release(self, request: RequestContext) -> None:
        """Take back the booking of a request that ends before its turn."""
        if request.booking is not None:
            self._end(request.booking, answered=False)
            request.booking = None

    async def _called(self, booking: Booking, deadline: float) -> None:
        call = self._calls[booking] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(deadline):
                await call
        except TimeoutError:
            raise DeadlineError("The deadline passed while the request was in the queue.") from None
        finally:
            del self._calls[booking]

    def _end(self, booking: Booking, *, answered: bool) -> None:
        now = asyncio.get_running_loop().time()
        self.schedule.end(now, booking, answered=answered)
        self._give(now)

    def _give(self, now: float) -> None:
        """Call the next requests, as many as there are places."""
        while (booking := self.schedule.next(now)) is not None:
            call = self._calls.get(booking)
            if call is not None and not call.done():
                call.set_result(None)

    def _keep_pace(self) -> None:
        """Take over what the devices say of themselves: the first time, all; then, their number."""
        pace = self._pace()
        if pace is None:
            return
        if self.schedule.rate is None:
            self.schedule.rate = AnswerRate(pace.interval_s, pace.image_s)
        # While the devices are busy, as many are decoded to be next. More would only leave the
        # order of due times earlier.
        self.schedule.places = pace.at_once + self._decode_threads
