"""Which requests are admitted: readiness, requests in flight, bytes in flight. Knows no ASGI.

A request above these limits is refused at once; an admitted one waits for memory instead
(`purnet_serve.images.thread_pool`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from purnet_serve.errors import (
    BodyTooLargeError,
    BusyError,
    DrainingError,
    NotReadyError,
    ServiceError,
    TooManyBytesError,
)
from purnet_serve.settings import Settings


class Slot:
    """The place of one admitted request: its part of the limits, and the task that serves it."""

    def __init__(self, admission: Admission, upload_bytes: int) -> None:
        self._admission = admission
        self._task: asyncio.Task[object] | None = None
        self._aborted_by: Exception | None = None
        self.bytes = upload_bytes

    def resize(self, upload_bytes: int) -> None:
        """Count the bytes that are really held now."""
        self._admission.bytes += upload_bytes - self.bytes
        self.bytes = upload_bytes

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        self._admission.forget(self)

    async def run(self, work: Awaitable[None]) -> None:
        """Await `work` in the current task. Raises what it raises, or the error of `abort`."""
        task = self._task = asyncio.current_task()
        try:
            await work
        except asyncio.CancelledError:
            if task is None or self._aborted_by is None or task.uncancel() > 0:
                raise  # cancelled by someone else
            raise self._aborted_by from None
        finally:
            self._task = None

    def abort(self, error: Exception) -> None:
        """End the work early: `run` raises this error. Does nothing when the work has ended."""
        if self._task is not None and self._aborted_by is None:
            self._aborted_by = error
            self._task.cancel()


class Admission:
    """Counts what is in flight and refuses what is too much. Runs on the event loop alone."""

    def __init__(self, settings: Settings, unready_reason: Callable[[], str | None]) -> None:
        self._settings = settings
        self._unready_reason = unready_reason
        self._slots: set[Slot] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._leaving = False
        self._draining = False
        self.bytes = 0
        """Bytes of uploads that are held, or announced and not yet received."""

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return len(self._slots)

    def unavailable(self) -> ServiceError | None:
        """Why no image can be taken now; None when it can."""
        if self._draining:
            return DrainingError("The service is shutting down.")
        reason = self._unready_reason()
        return None if reason is None else NotReadyError(f"Not ready: {reason.rstrip('.')}.")

    def unready(self) -> ServiceError | None:
        """Why a load balancer should send nothing here any more; None when it should."""
        if self._leaving:
            return DrainingError("The service is about to shut down.")
        return self.unavailable()

    def admit(self, content_length: int | None) -> Slot:
        """Admit a request by the length it announces; None is a body of unknown length.

        Raises `BusyError`, `TooManyBytesError` or `BodyTooLargeError`.
        """
        most_requests = self._settings.max_requests_in_flight
        most_bytes, most_body = self._settings.max_bytes_in_flight, self._settings.max_body_bytes
        if self.requests >= most_requests:
            detail = "As many requests as this service holds are in flight."
            raise BusyError(detail, limit=most_requests)
        reserved = most_body if content_length is None else min(content_length, most_body)
        if self.bytes + reserved > most_bytes:
            detail = "As many bytes as this service holds are in flight."
            raise TooManyBytesError(detail, limit=most_bytes)
        if content_length is not None and content_length > most_body:
            raise body_too_large(most_body, content_length)
        slot = Slot(self, reserved)
        self._slots.add(slot)
        self.bytes += reserved
        self._idle.clear()
        return slot

    def forget(self, slot: Slot) -> None:
        """Called by a slot that is released."""
        if slot in self._slots:
            self._slots.remove(slot)
            self.bytes -= slot.bytes
            if not self._slots:
                self._idle.set()

    def leave(self) -> None:
        """Report not ready; until load balancers have noticed, requests are still admitted."""
        self._leaving = True

    def drain(self) -> None:
        """Admit no more requests; those in flight go on."""
        self._draining = True

    async def idle(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()

    def abort_all(self, error: ServiceError) -> None:
        """End every request in flight with this error."""
        for slot in list(self._slots):
            slot.abort(error)


def body_too_large(limit: int, actual: int) -> BodyTooLargeError:
    """The error for a body of `actual` bytes, announced or counted."""
    return BodyTooLargeError(f"The body may have {limit} bytes.", limit=limit, actual=actual)
