"""Which request is worked on now: slots of the pipeline, given in the order of due times.

A request is accepted before a byte of its body is asked for, and refused if it could not be
answered in time. It is decoded once it has a slot, so all waiting is in one place and one order
(`purnet_serve.inference.schedule`). Runs on the event loop alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from purnet_serve.errors import DeadlineError, WouldBeLateError
from purnet_serve.http.request import RequestContext
from purnet_serve.inference.backend import Throughput
from purnet_serve.inference.batcher import QueueObserver
from purnet_serve.inference.schedule import (
    Schedule,
    ScheduledRequest,
    ServiceRate,
    TooLateError,
)
from purnet_serve.observability.labels import Stage, TicketLocation


class RequestScheduler:
    """Accepts requests and gives them slots of the pipeline."""

    def __init__(
        self,
        target_latency_s: float,
        throughput: Callable[[], Throughput | None],
        decode_threads: int,
        observer: QueueObserver,
    ) -> None:
        self.schedule = Schedule(target_latency_s)
        self._throughput = throughput
        self._decode_threads = decode_threads
        self._observer = observer
        self._waiters: dict[ScheduledRequest, asyncio.Future[None]] = {}
        """Futures of the requests that wait for a slot."""

    def accept(self, request: RequestContext, timeout_s: float | None) -> None:
        """Accept an admitted request; `timeout_s` is what its client asked for, if it did.

        Raises `WouldBeLateError`.
        """
        schedule, now = self.schedule, asyncio.get_running_loop().time()
        self._update_throughput()
        target_s = schedule.target_s
        due = min(request.deadline, request.arrived + target_s)
        if timeout_s is not None:
            due = request.deadline
        try:
            request.scheduled = schedule.accept(now, due, request.deadline)
        except TooLateError as late:
            raise WouldBeLateError(
                f"The answer would take about {late.estimate_s:.2f} s; this request allows "
                f"{late.allowed_s:.2f} s.",
                limit=round(late.allowed_s, 3),
                actual=round(late.estimate_s, 3),
                retry_after_s=max(1, math.ceil(late.estimate_s - late.allowed_s)),
            ) from None

    @asynccontextmanager
    async def slot(self, request: RequestContext) -> AsyncIterator[None]:
        """Wait for a slot of the pipeline; hold it until the block ends.

        A request has one slot. Raises `DeadlineError` when its time is over before, or is not
        enough any more, and `RuntimeError` for a request that was not accepted.
        """
        loop, scheduled = asyncio.get_running_loop(), request.scheduled
        if scheduled is None:
            raise RuntimeError(f"{request.method} {request.path!r} was not accepted")
        request.scheduled = None
        request.stage = Stage.QUEUE
        ready_s = loop.time()
        answered = False
        self.schedule.mark_ready(ready_s, scheduled)
        try:
            self._start_waiting(ready_s)
            if scheduled.started_s is None:
                await self._wait_for_slot(scheduled, request.deadline)
            now = loop.time()
            request.slot_wait_s = now - ready_s
            if self.schedule.cannot_finish(now, scheduled):
                self._observer.expired(TicketLocation.SLOT)
                raise DeadlineError("Too little of the request's time is left to answer it.")
            yield
            answered = True
        finally:
            self._end(scheduled, answered=answered)

    def release(self, request: RequestContext) -> None:
        """Forget a request that ends before it had a slot."""
        if request.scheduled is not None:
            self._end(request.scheduled, answered=False)
            request.scheduled = None

    async def _wait_for_slot(self, scheduled: ScheduledRequest, deadline: float) -> None:
        waiter = self._waiters[scheduled] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError:
            self._observer.expired(TicketLocation.SLOT)
            raise DeadlineError("The deadline passed while the request was in the queue.") from None
        except asyncio.CancelledError:
            self._observer.cancelled(TicketLocation.SLOT)
            raise
        finally:
            del self._waiters[scheduled]

    def _end(self, scheduled: ScheduledRequest, *, answered: bool) -> None:
        now = asyncio.get_running_loop().time()
        self.schedule.end(now, scheduled, answered=answered)
        self._start_waiting(now)

    def _start_waiting(self, now: float) -> None:
        """Give all free slots to requests that wait."""
        while (scheduled := self.schedule.start_next(now)) is not None:
            waiter = self._waiters.get(scheduled)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _update_throughput(self) -> None:
        """Take over what the devices measured: at first all of it, later their concurrency."""
        throughput = self._throughput()
        if throughput is None:
            return
        if self.schedule.rate is None:
            self.schedule.rate = ServiceRate(throughput.interval_s, throughput.latency_s)
        # While the devices are busy, as many more are decoded to be next. More would only leave
        # the order of due times earlier.
        self.schedule.slots = throughput.concurrency + self._decode_threads
