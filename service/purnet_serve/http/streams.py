"""The two directions of an exchange: an upload counted and watched, an answer in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Send

from purnet_serve.errors import MalformedBodyError, UploadTimeoutError
from purnet_serve.http.admission import Lease, too_large
from purnet_serve.http.request import ClientGoneError, Exchange
from purnet_serve.observability.labels import Stage

SLICE_BYTES = 64 * 1024
"""An answer goes out in slices, each after the last was taken, so that none is buffered whole."""


class Body:
    """Receives an upload: counted, timed, and watched for the client's end once it is complete."""

    def __init__(
        self,
        receive: Receive,
        lease: Lease,
        exchange: Exchange,
        max_bytes: int,
        timeout_s: float,
    ) -> None:
        self._receive = receive
        self._lease = lease
        self._exchange = exchange
        self._max_bytes = max_bytes
        self._until = min(exchange.arrived + timeout_s, exchange.deadline)
        self._complete = asyncio.Event()
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        """The next part of the body. Raises the refusals that only the bytes can cause."""
        if self._complete.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            allowed = round(self._until - self._exchange.arrived, 3)
            raise UploadTimeoutError(
                f"The upload did not arrive within {allowed} s.", limit=allowed
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._exchange.body_bytes += len(message.get("body", b""))
        if self._exchange.body_bytes > self._max_bytes:
            raise too_large(self._max_bytes, self._exchange.body_bytes)
        if self._exchange.body_bytes > self._lease.bytes:
            raise MalformedBodyError("The body is longer than its Content-Length.")
        if not message.get("more_body", False):
            now = asyncio.get_running_loop().time()
            self._exchange.timings[Stage.RECEIVE] = now - self._exchange.arrived
            self._complete.set()
        return message

    async def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client closes its connection after the upload."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        on_gone()


class Sender:
    """Sends an answer: marked with our headers, sliced, and not for ever."""

    def __init__(self, send: Send, exchange: Exchange, timeout_s: float) -> None:
        self._send = send
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._started_at = 0.0
        self.started = False
        self.complete = False
        self.on_complete: Callable[[], None] = lambda: None
        """Called with the last byte, before the client can send its next request."""

    async def __call__(self, message: Message) -> None:
        """Pass on one message. Raises `ClientGoneError` when the client does not take it."""
        loop = asyncio.get_running_loop()
        if message["type"] == "http.response.start":
            self.started = True
            self._started_at = loop.time()
            self._exchange.stage = Stage.SEND
            self._exchange.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._exchange.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            await self._send(message)
            return
        try:
            async with asyncio.timeout_at(self._started_at + self._timeout_s):
                await self._send_body(message.get("body", b""), message.get("more_body", False))
        except TimeoutError:
            raise ClientGoneError from None
        self._exchange.timings[Stage.SEND] = loop.time() - self._started_at
        if self.complete:
            self.on_complete()

    async def _send_body(self, body: bytes, more: bool) -> None:
        view = memoryview(body)
        for start in range(0, max(1, len(view)), SLICE_BYTES):
            piece = bytes(view[start : start + SLICE_BYTES])
            last = start + SLICE_BYTES >= len(view)
            self.complete = last and not more
            await self._send(
                {"type": "http.response.body", "body": piece, "more_body": not self.complete}
            )
            self._exchange.answer_bytes += len(piece)


def api_key(headers: Headers) -> str | None:
    """The key in `X-Api-Key` or, failing that, in `Authorization: Bearer`."""
    if (key := headers.get("x-api-key")) is not None:
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def content_length(headers: Headers) -> int | None:
    """What the request announces; None when it is sent in chunks. Raises `MalformedBodyError`."""
    values = set(headers.getlist("content-length"))
    if not values or "transfer-encoding" in headers:
        return None
    value = values.pop()
    if values or not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise MalformedBodyError("Content-Length is not one whole number.")
    return int(value)
