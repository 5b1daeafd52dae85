"""Which requests are admitted: readiness, requests in flight, bytes in flight.

A request above these limits is refused at once; an admitted one waits for memory instead
(`purnet_serve.images.thread_pool`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from purnet_serve.errors import (
    BodyTooLargeError,
    BusyError,
    DrainingError,
    NotReadyError,
    ServiceError,
    TooManyBytesError,
)
from purnet_serve.http.request import RequestContext
from purnet_serve.settings import Settings


class Admission:
    """Counts what is in flight and refuses what is too much. Runs on the event loop alone."""

    def __init__(self, settings: Settings, unready_reason: Callable[[], str | None]) -> None:
        self._settings = settings
        self._unready_reason = unready_reason
        self._admitted: set[RequestContext] = set()
        self._failing_readiness = False
        self._draining = False
        self.idle = asyncio.Event()
        """Set while nothing is in flight."""
        self.idle.set()
        self.bytes = 0
        """Bytes of uploads that are held, or announced and not yet received."""

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return len(self._admitted)

    @property
    def draining(self) -> bool:
        """Whether no more requests are admitted, and connections are closed after their answer."""
        return self._draining

    def admission_error(self) -> ServiceError | None:
        """Why no image can be taken now; None when it can."""
        if self._draining:
            return DrainingError("The service is shutting down.")
        reason = self._unready_reason()
        return None if reason is None else NotReadyError(f"Not ready: {reason.rstrip('.')}.")

    def readiness_error(self) -> ServiceError | None:
        """Why a load balancer should send nothing here any more; None when it should."""
        if self._failing_readiness:
            return DrainingError("The service is about to shut down.")
        return self.admission_error()

    def admit(self, request: RequestContext, content_length: int | None) -> None:
        """Admit a request by the length it announces; None is a body of unknown length.

        Raises `BusyError`, `TooManyBytesError` or `BodyTooLargeError`.
        """
        most_requests = self._settings.max_requests_in_flight
        most_bytes, most_body = self._settings.max_bytes_in_flight, self._settings.max_body_bytes
        if self.requests >= most_requests:
            detail = "The service already holds as many requests as it may; try again."
            raise BusyError(detail, limit=most_requests)
        reserved = most_body if content_length is None else min(content_length, most_body)
        if self.bytes + reserved > most_bytes:
            raise self._too_many_bytes()
        if content_length is not None and content_length > most_body:
            raise body_too_large(most_body, content_length)
        self._admitted.add(request)
        self.idle.clear()
        self.resize(request, reserved)

    def holds(self, request: RequestContext) -> bool:
        """Whether a request was admitted and not released."""
        return request in self._admitted

    def resize(self, request: RequestContext, upload_bytes: int) -> None:
        """Count the bytes that an admitted request really holds now."""
        self.bytes += upload_bytes - request.upload_bytes
        request.upload_bytes = upload_bytes

    def reserve(self, request: RequestContext, upload_bytes: int) -> None:
        """Count more bytes for an admitted request than it announced: a photo at a URL, or decoded.

        What is more than the whole limit is granted where no other request holds bytes. Raises
        `TooManyBytesError`, changing nothing, where the bytes are not free.
        """
        others = self.bytes - request.upload_bytes
        if others and others + upload_bytes > self._settings.max_bytes_in_flight:
            raise self._too_many_bytes()
        self.resize(request, upload_bytes)

    def release(self, request: RequestContext) -> None:
        """Take back all that a request holds; a second call does nothing.

        The memory of an answer that a thread still makes is taken back when the thread is done.
        """
        self.resize(request, 0)
        self._admitted.discard(request)
        if not self._admitted:
            self.idle.set()
        if request.answer_memory is not None:
            request.answer_memory.release()
            request.answer_memory = None

    def start_failing_readiness(self) -> None:
        """Report not ready; until load balancers have noticed, requests are still admitted."""
        self._failing_readiness = True

    def stop_admitting(self) -> None:
        """Admit no more requests; those in flight go on."""
        self._draining = True

    def _too_many_bytes(self) -> TooManyBytesError:
        detail = "The service already holds as many bytes of uploads as it may; try again."
        return TooManyBytesError(detail, limit=self._settings.max_bytes_in_flight)

    def abort_all(self, error: ServiceError) -> None:
        """End every request in flight with this error."""
        for request in list(self._admitted):
            request.abort(error)


def body_too_large(limit: int, actual: int) -> BodyTooLargeError:
    """The error for a body of `actual` bytes, announced or counted."""
    detail = f"The body has more than the {limit} bytes that are allowed."
    return BodyTooLargeError(detail, limit=limit, actual=actual)
