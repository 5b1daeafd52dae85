"""One request: what is known of it, and what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers

from purnet_serve.errors import DeadlineError, MalformedBodyError
from purnet_serve.http.admission import Slot
from purnet_serve.images.thread_pool import Reservation
from purnet_serve.observability.labels import Stage


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
    slot: Slot | None = None
    """What admission granted; None until then, and for requests that need none."""
    answer_memory: Reservation | None = None
    """Memory for the answer, from before it is encoded until it is sent."""
    stage: Stage = Stage.RECEIVE
    timings: dict[Stage, float] = field(default_factory=dict)
    """Seconds of each stage that has ended."""
    status: int = 0
    """Status sent; 0 while none was."""
    code: str | None = None
    """Code of the error that was answered."""
    complete: bool = False
    """Whether the last byte of the answer was sent."""
    gone: bool = False
    """Whether the client left first; `stage` says during what."""
    ended: bool = False
    """Whether it was counted and logged."""
    body_bytes: int = 0
    answer_bytes: int = 0
    width: int = 0
    height: int = 0
    batch_size: int = 0

    def release(self) -> None:
        """Give back what it holds; a second call does nothing."""
        slot, memory = self.slot, self.answer_memory
        self.slot = self.answer_memory = None
        if slot is not None:
            slot.release()
        if memory is not None:
            memory.resize(0)

    @asynccontextmanager
    async def timed(self, stage: Stage) -> AsyncIterator[None]:
        """Time a stage, and end it at the deadline with `DeadlineError`."""
        self.stage = stage
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout_at(self.deadline):
                yield
        except TimeoutError:
            allowed = round(self.deadline - self.arrived, 3)
            detail = f"The request's {allowed} s were over at stage '{stage}'."
            raise DeadlineError(detail, limit=allowed) from None
        self.timings[stage] = loop.time() - started


def content_length(headers: Headers) -> int | None:
    """The length a request announces; None for one in chunks. Raises `MalformedBodyError`."""
    values = set(headers.getlist("content-length"))
    if not values or "transfer-encoding" in headers:
        return None
    value = values.pop()
    if values or not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise MalformedBodyError("Content-Length is not one whole number.")
    return int(value)
