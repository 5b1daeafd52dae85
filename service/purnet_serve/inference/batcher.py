"""The queue: tickets in, batches out. asyncio only: no torch, no web, no process.

The batcher is work-conserving: a free executor gets everything that waits, up to what it can run.
Tickets wait for others only while more images are known to be on their way. Everything happens in
callbacks of one event loop, so nothing is locked and nothing polls; time comes from that loop, so
a test that controls the loop's clock controls every deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from purnet_serve.errors import DeadlineError, DrainingError, NotReadyError, ServiceError
from purnet_serve.inference.backend import Pixels, Prediction
from purnet_serve.observability.labels import DispatchReason, TicketLocation


@dataclass(eq=False, slots=True)
class Ticket:
    """One queued image. Its future is resolved exactly once, by whoever comes first."""

    number: int
    """Position in the order of arrival; a retried ticket keeps it."""
    pixels: Pixels
    deadline_s: float
    queued_s: float
    future: asyncio.Future[Prediction]
    location: TicketLocation = TicketLocation.QUEUE
    alone: bool = False
    """A worker ended while it ran this image: it runs once more, on a device that runs nothing
    else."""
    health_check: bool = False
    """A check of a worker, not a request: in no counter of images."""

    @property
    def own_batch(self) -> bool:
        """Whether it shares a batch with no other image."""
        return self.alone or self.health_check

    @property
    def live(self) -> bool:
        """Whether anybody still waits for the answer."""
        return not self.future.done()

    def resolve(self, result: Prediction | ServiceError) -> bool:
        """Hand out the answer or the error; false when the client had stopped waiting."""
        if self.future.done():
            return False
        if isinstance(result, Prediction):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)
        return True


@dataclass(eq=False, slots=True)
class Batch:
    """Tickets that run together, in the order they arrived."""

    tickets: tuple[Ticket, ...]
    reason: DispatchReason
    started_s: float
    """When its device could begin with it, on the loop's clock."""

    @property
    def health_check(self) -> bool:
        """Whether it is a check of a worker; its one ticket may have nobody who waits for it."""
        return any(ticket.health_check for ticket in self.tickets)

    @property
    def alone(self) -> bool:
        """Whether it must have its device to itself."""
        return any(ticket.alone for ticket in self.tickets)

    def __len__(self) -> int:
        return len(self.tickets)


class BatchExecutor(Protocol):
    """Something that runs batches: a device, as far as the queue needs to know it."""

    @property
    def limit(self) -> int:
        """Most images of the next batch; 0 while it takes none, as beside one that runs alone."""

    @property
    def batches(self) -> int:
        """Batches that were submitted and have not finished."""

    def submit(self, batch: Batch) -> None:
        """Run a batch of at most `limit` images; returns at once."""


class QueueObserver(Protocol):
    """Counts the images that nobody waits for any longer."""

    def expired(self, location: TicketLocation) -> None:
        """A deadline passed."""

    def cancelled(self, location: TicketLocation) -> None:
        """A client went away."""


@dataclass(eq=False, slots=True)
class Batcher:
    """First in, first out, in batches as large as the executors and the moment allow."""

    loop: asyncio.AbstractEventLoop
    """Its clock and its timers are the batcher's."""
    max_wait_s: float
    """Longest time a ticket waits for images that are still being decoded."""
    observer: QueueObserver
    executors: list[BatchExecutor] = field(default_factory=list)

    _waiting: dict[Ticket, None] = field(default_factory=dict)
    _open: set[Ticket] = field(default_factory=set)
    _arrivals: int = 0
    _upstream: int = 0
    _paused: bool = False
    _closed: str | None = None
    _wakeup: asyncio.Handle | None = None
    _wait_timer: asyncio.TimerHandle | None = None

    async def predict(
        self, pixels: Pixels, deadline_s: float, *, health_check: bool = False
    ) -> Prediction:
        """Queue one image and wait for its answer; cancelling the call withdraws the ticket.

        Raises `DeadlineError` on time even while every device is busy, and whatever error the
        ticket is failed with.
        """
        if self._closed is not None:
            raise DrainingError(self._closed)
        now = self.loop.time()
        if deadline_s <= now:
            self.observer.expired(TicketLocation.QUEUE)
            raise _deadline_error(TicketLocation.QUEUE)
        self._arrivals += 1
        future = self.loop.create_future()
        ticket = Ticket(self._arrivals, pixels, deadline_s, now, future, health_check=health_check)
        timer = self.loop.call_at(deadline_s, self._expire, ticket)
        self._open.add(ticket)
        self._waiting[ticket] = None
        self.wake()
        try:
            return await ticket.future
        except asyncio.CancelledError:
            # A client that leaves in the same turn of the loop as its answer comes was answered.
            if ticket.future.cancelled() and not health_check:
                self.observer.cancelled(ticket.location)
            raise
        finally:
            timer.cancel()
            self._waiting.pop(ticket, None)
            self._open.discard(ticket)

    def expect(self, images: int) -> None:
        """Add `images` (may be negative) to the number known to be on their way here."""
        self._upstream += images
        self.wake()

    def requeue(self, tickets: Iterable[Ticket]) -> None:
        """Put tickets that no device answered back where their arrival places them."""
        for ticket in tickets:
            ticket.location = TicketLocation.QUEUE
            self._waiting[ticket] = None
        self._waiting = dict.fromkeys(sorted(self._waiting, key=lambda ticket: ticket.number))
        self.wake()

    def wake(self) -> None:
        """Dispatch what can be dispatched, after the callbacks that are due now have run.

        Deferred, so that images which finish decoding in the same turn of the loop leave together.
        """
        if self._wakeup is None:
            self._wakeup = self.loop.call_soon(self._dispatch)

    def pause(self) -> None:
        """Dispatch nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Dispatch again."""
        self._paused = False
        self.wake()

    def fail_queued(self, reason: str) -> None:
        """Fail what is in the queue with `NotReadyError`: no device can be expected to run it."""
        for ticket in self._waiting:
            ticket.resolve(NotReadyError(reason))

    def close(self, reason: str) -> None:
        """Fail every open ticket, on a device or not, with `DrainingError`, and refuse new ones."""
        self._closed = reason
        for ticket in self._open:
            ticket.resolve(DrainingError(reason))
        if self._wait_timer is not None:
            self._wait_timer.cancel()

    @property
    def queued(self) -> int:
        """Tickets in the queue; may be read from any thread."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Tickets that wait for an answer, in the queue or on a device; from any thread."""
        return len(self._open)

    @property
    def oldest_s(self) -> float:
        """Age of the oldest ticket in the queue, 0 for none; may be read from any thread."""
        # Copied in one step of the interpreter: the metrics server reads from its own thread.
        waiting = tuple(self._waiting)
        return max(0.0, self.loop.time() - waiting[0].queued_s) if waiting else 0.0

    def _dispatch(self) -> None:
        self._wakeup = None
        while not self._paused and self._waiting:
            self._discard_expired()
            if not self._waiting:
                return
            first = next(iter(self._waiting))
            # While an image that must run alone is first, devices are left to become idle.
            executor = self._free_executor(idle=first.alone)
            if executor is None:
                return
            limit = 1 if first.own_batch else executor.limit
            reason = self._dispatch_reason(first, limit)
            if reason is None:
                return
            # A busy executor with a free buffer gets full batches only: a smaller one would wait
            # behind its batch while another executor, about to be free, could run it.
            if executor.batches and reason is not DispatchReason.FULL:
                return
            executor.submit(Batch(self._pop(limit), reason, self.loop.time()))

    def _free_executor(self, *, idle: bool) -> BatchExecutor | None:
        free = [executor for executor in self.executors if executor.limit]
        least = min(free, key=lambda executor: executor.batches, default=None)
        return None if least is None or (idle and least.batches) else least

    def _discard_expired(self) -> None:
        """Keep what is cancelled, and what expires at this very moment, off the device."""
        now = self.loop.time()
        for ticket in tuple(self._waiting):
            if ticket.deadline_s <= now:
                self._expire(ticket)
            elif not ticket.live:
                del self._waiting[ticket]

    def _dispatch_reason(self, first: Ticket, limit: int) -> DispatchReason | None:
        """Why a batch may leave now; None when it should wait, and then a timer is set."""
        if len(self._waiting) >= limit:
            return DispatchReason.FULL
        if self._upstream <= 0:
            return DispatchReason.NOTHING_UPSTREAM
        wait_ends_s = first.queued_s + self.max_wait_s
        if self.loop.time() >= wait_ends_s:
            return DispatchReason.WAITED
        if self._wait_timer is not None:
            self._wait_timer.cancel()
        self._wait_timer = self.loop.call_at(wait_ends_s, self.wake)
        return None

    def _pop(self, limit: int) -> tuple[Ticket, ...]:
        popped: list[Ticket] = []
        for ticket in self._waiting:
            if len(popped) == limit or (ticket.own_batch and popped):
                break
            popped.append(ticket)
        for ticket in popped:
            del self._waiting[ticket]
            ticket.location = TicketLocation.DEVICE
        return tuple(popped)

    def _expire(self, ticket: Ticket) -> None:
        self._waiting.pop(ticket, None)
        if ticket.resolve(_deadline_error(ticket.location)) and not ticket.health_check:
            self.observer.expired(ticket.location)


def _deadline_error(location: TicketLocation) -> DeadlineError:
    where = "in the queue" if location is TicketLocation.QUEUE else "on the device"
    return DeadlineError(f"The deadline passed while the image was {where}.")
