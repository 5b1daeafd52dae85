"""One request: what is known of it, what it holds, and the task that serves it."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers

from purnet_serve.errors import (
    DeadlineError,
    MalformedBodyError,
    ServiceError,
    UploadTimeoutError,
)
from purnet_serve.images.thread_pool import Reservation
from purnet_serve.inference.schedule import ScheduledRequest
from purnet_serve.observability.labels import Stage

_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


class ClientGoneError(Exception):
    """The client closed its connection or stopped reading: there is nobody to answer."""


@dataclass(slots=True, eq=False)
class RequestContext:
    """One request, from its first header to the last byte of its answer.

    The middleware makes and ends it; the routes find it as `request.state.context` and add to it.
    Times are seconds on the event loop's clock. Of what is logged, nothing identifies a person or
    a picture.
    """

    id: str
    method: str
    path: str
    headers: Headers
    arrived: float
    deadline: float
    upload_deadline: float = math.inf  # the body must have arrived by then
    traceparent: str | None = None  # what is answered: the client's trace, with an id of our part
    upload_bytes: int = 0  # that admission counts for the upload
    answer_memory: Reservation | None = None  # from before it is encoded until it is sent
    scheduled: ScheduledRequest | None = None  # from its acceptance until it has a slot
    slot_wait_s: float = 0.0  # that it waited for a slot
    stage: Stage = Stage.RECEIVE
    timings: dict[Stage, float] = field(default_factory=dict)  # of the stages that have ended
    status: int = 0  # sent; 0 while none was
    code: str | None = None  # of the error that was answered
    complete: bool = False  # whether the last byte of the answer was sent
    gone: bool = False  # whether the client left first; `stage` says during what
    ended: bool = False  # whether it was counted and logged
    body_received: bool = False  # whether nothing more of the body can come
    body_bytes: int = 0
    answer_bytes: int = 0
    width: int = 0
    height: int = 0
    batch_size: int = 0
    _task: asyncio.Task[object] | None = None
    _timer: asyncio.TimerHandle | None = None
    _aborted_by: Exception | None = None

    @property
    def trace_id(self) -> str | None:
        """The id of the trace this request belongs to, 32 hex digits; None without one."""
        return None if self.traceparent is None else self.traceparent.split("-")[1]

    @contextmanager
    def enter_stage(self, stage: Stage) -> Iterator[None]:
        """Enter a stage and time it, the upload from its first header.

        Raises the error of a time that is over before the stage begins; `run` ends one that takes
        too long.
        """
        self.stage = stage
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._stage_deadline():
            raise self._too_late()
        yield
        self.timings[stage] = loop.time() - (self.arrived if stage is Stage.RECEIVE else now)

    async def run(self, work: Awaitable[None]) -> None:
        """Await `work` in the current task.

        Raises what it raises, the error of `abort`, `UploadTimeoutError` while the body
        arrives after `upload_deadline`, or `DeadlineError` while it arrives, or a photo is fetched,
        decoded or encoded, after `deadline`. The backend holds the deadline itself, and an answer
        is sent within its own time.
        """
        task = self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        # One timer a request: it is set anew if the upload has arrived when it goes off.
        self._timer = loop.call_at(self._stage_deadline(), self._on_timeout)
        try:
            await work
        except asyncio.CancelledError:
            if task is None or self._aborted_by is None or task.uncancel() > 0:
                raise  # cancelled by someone else
            raise self._aborted_by from None
        finally:
            self._task = None
            self._timer.cancel()

    def abort(self, error: Exception) -> None:
        """End the work early: `run` raises this error. Does nothing when the work has ended."""
        if self._task is not None and self._aborted_by is None:
            self._aborted_by = error
            self._task.cancel()

    def _stage_deadline(self) -> float:
        """When the time for the current stage is over."""
        return min(self.upload_deadline, self.deadline) if self._uploads() else self.deadline

    def _uploads(self) -> bool:
        """Whether the body is arriving; a photo that is then fetched has a limit of its own."""
        return self.stage is Stage.RECEIVE and not self.body_received

    def _on_timeout(self) -> None:
        """End a stage that takes too long, or wait for its end anew if it has more time.

        While the request is queued or its answer is sent, the timer is given up: the scheduler and
        the backend hold the deadline of a queued request, and the error of a stage that is entered
        after it comes from `enter_stage`; an answer has a time of its own (`ResponseStream`).
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._stage_deadline():
            self._timer = loop.call_at(self._stage_deadline(), self._on_timeout)
        elif self.stage in (Stage.RECEIVE, Stage.DECODE, Stage.ENCODE):
            self.abort(self._too_late())

    def _too_late(self) -> ServiceError:
        is_slow_upload = self._uploads() and self.upload_deadline <= self.deadline
        error = UploadTimeoutError if is_slow_upload else DeadlineError
        allowed = round(self._stage_deadline() - self.arrived, 3)
        detail = f"The request's {allowed} s were over at stage '{self.stage}'."
        return error(detail, limit=allowed)


def content_length(headers: Headers) -> int | None:
    """The length a request announces; None for one in chunks. Raises `MalformedBodyError`."""
    values = set(headers.getlist("content-length"))
    if not values or "transfer-encoding" in headers:
        return None
    value = values.pop()
    if values or not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise MalformedBodyError("Content-Length is not one whole number.")
    return int(value)


def continued_trace(headers: Headers) -> str | None:
    """The `traceparent` of our part of the client's trace, by W3C Trace Context.

    It keeps the trace's id and the flag "sampled" and has a new parent id. None without a valid
    `traceparent`: one that is malformed starts no trace and fails no request.
    """
    values = headers.getlist("traceparent")
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or (match["version"] == "00" and match["more"]):
        return None
    sampled = int(match["flags"], 16) & 1
    return f"00-{match['trace']}-{secrets.token_hex(8)}-{sampled:02x}"
