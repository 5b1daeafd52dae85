"""Bounded threads and bounded memory for decoding and encoding.

Both limits are waited for on the event loop, so that a cancelled caller leaves nothing queued.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")


class MemoryBudget:
    """A number of bytes that callers reserve parts of, in order of arrival.

    A reservation larger than the whole budget is granted when it is the only one.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()  # `Reservation.grow` comes from a thread
        self.reserved_bytes = 0

    async def reserve(self, size_bytes: int) -> Reservation:
        """Wait until `size_bytes` are free and reserve them. Cancelling reserves nothing."""
        if self.try_reserve(size_bytes):
            return Reservation(self, size_bytes)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(size_bytes)
            else:
                self._grant()
            raise
        return Reservation(self, size_bytes)

    def try_reserve(self, size_bytes: int) -> bool:
        """Reserve `size_bytes` if they are free and nobody waits. Callable from any thread."""
        with self._lock:
            if self._waiting or not self._fits(size_bytes):
                return False
            self.reserved_bytes += size_bytes
            return True

    def release(self, size_bytes: int) -> None:
        """Return `size_bytes` to the budget."""
        with self._lock:
            self.reserved_bytes -= size_bytes
        self._grant()

    def _fits(self, size_bytes: int) -> bool:
        return self.reserved_bytes == 0 or self.reserved_bytes + size_bytes <= self._limit_bytes

    def _grant(self) -> None:
        while self._waiting:
            size_bytes, granted = self._waiting[0]
            if not granted.done():
                with self._lock:
                    if not self._fits(size_bytes):
                        return
                    self.reserved_bytes += size_bytes
                granted.set_result(None)
            self._waiting.popleft()


class Reservation:
    """Bytes reserved from a budget, until its owner calls `release`."""

    def __init__(self, budget: MemoryBudget, size_bytes: int) -> None:
        self._budget = budget
        self._in_thread = False
        self._is_released = False
        self.bytes = size_bytes

    def resize(self, size_bytes: int) -> None:
        """Return what is more than `size_bytes` to the budget."""
        self._budget.release(self.bytes - size_bytes)
        self.bytes = size_bytes

    def grow(self, size_bytes: int) -> bool:
        """Reserve `size_bytes` more if they are free now. Callable from any thread."""
        granted = self._budget.try_reserve(size_bytes)
        self.bytes += size_bytes if granted else 0
        return granted

    def release(self) -> None:
        """Return all of it: now, or when the thread that fills it is done."""
        self._is_released = True
        if not self._in_thread:
            self.resize(0)

    def enter_thread(self) -> None:
        """A thread begins to fill this memory. Its owner may be cancelled; the thread goes on."""
        self._in_thread = True

    def leave_thread(self) -> None:
        """The thread is done."""
        self._in_thread = False
        if self._is_released:
            self.resize(0)


@dataclass(frozen=True, slots=True)
class _Postponed(Generic[M]):
    """What was measured for a call whose memory was not free."""

    measured: M


class BoundedThreadPool:
    """At most `threads` calls at once, within a memory budget; others wait on the event loop.

    An executor's own queue would keep the arguments of cancelled calls (the uploads of clients that
    have disconnected) until a thread is free. Here a call reaches the executor only when a thread
    is free. Its thread and its reservation are released when the call has ended, even if its caller
    was cancelled before, so memory stays bounded.
    """

    def __init__(self, threads: int, name: str, budget: MemoryBudget) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(threads)
        self._budget = budget

    async def run(
        self, size_bytes: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `call`, which allocates up to `size_bytes`, in a thread and return its result.

        Cancelling before the call has begun undoes everything; later, the call runs to its end.
        """
        return await self._run(size_bytes, lambda _: call(*args, **kwargs))

    async def run_into(
        self,
        memory: Reservation,
        size_bytes: int,
        call: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As `run`, for a result that `memory` is reserved for.

        If the caller is cancelled and releases `memory`, it is returned when the call has ended.
        """
        return await self._run(size_bytes, lambda _: call(*args, **kwargs), memory)

    async def run_measured(
        self, measure: Callable[[], M], size_bytes: Callable[[M], int], call: Callable[[M], T]
    ) -> T:
        """Run `call` on the result of `measure`, of which `size_bytes` tells what it allocates.

        Both run in one thread without a return to the event loop, unless the memory is taken:
        then the call waits for it as in `run`.
        """

        def both(reservation: Reservation) -> _Postponed[M] | T:
            measured = measure()
            if reservation.grow(size_bytes(measured)):
                return call(measured)
            return _Postponed(measured)

        result = await self._run(0, both)
        if isinstance(result, _Postponed):
            measured = result.measured
            return await self._run(size_bytes(measured), lambda _: call(measured))
        return result

    async def _run(
        self,
        size_bytes: int,
        call: Callable[[Reservation], T],
        result_memory: Reservation | None = None,
    ) -> T:
        await self._free.acquire()
        try:
            reservation = await self._budget.reserve(size_bytes)
        except BaseException:
            self._free.release()
            raise

        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        if result_memory is not None:
            result_memory.enter_thread()

        def end(value: T | None, error: BaseException | None) -> None:
            reservation.release()
            if result_memory is not None:
                result_memory.leave_thread()
            self._free.release()
            if result.cancelled():
                return
            if error is None:
                result.set_result(cast("T", value))
            else:
                result.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                if not result.cancelled():
                    value = call(reservation)
            except BaseException as raised:  # which is the caller's
                error = raised
            # One message to the loop; the executor's own futures would take two.
            loop.call_soon_threadsafe(end, value, error)

        try:
            self._executor.submit(work)
        except BaseException:
            end(None, None)
            raise
        return await result

    async def close(self) -> None:
        """Take no more calls and wait for those that run."""
        await asyncio.to_thread(self._executor.shutdown)
