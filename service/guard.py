"""The outermost layer, in pure ASGI: every request passes here first and ends here last.

An image upload is refused, if it is, before its first byte is asked for: `receive()` is what makes
the server send `100 Continue` and read on. FastAPI would read all of it before a dependency runs,
and its middleware base class hides that a client has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Lease, too_large
from service.door import Door
from service.errors import (
    ContentEncodingError,
    InternalError,
    MalformedBodyError,
    ServiceError,
    UploadTimeoutError,
)
from service.exchange import LEASE_KEY, SCOPE_KEY, ClientGoneError, Exchange, request_id
from service.options import TIMEOUT_HEADER, parse_timeout_s
from service.problems import problem

API_PREFIX = "/v1/"
IMAGE_DOOR = ("POST", "/v1/mask")
SLICE_BYTES = 64 * 1024
"""An answer goes out in slices, each after the last was taken, so that none is buffered whole."""

log = logging.getLogger("service.access")


class Guard:
    """Wraps the application. `door` is what it shares with the routes."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event; everything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        now = asyncio.get_running_loop().time()
        path = self._own_path(scope)
        exchange = Exchange(
            request_id=request_id(headers.get("x-request-id")),
            method=scope["method"],
            path=path,
            arrived=now,
            deadline=now + self._door.settings.timeout_s,
        )
        scope[SCOPE_KEY] = exchange
        sender = _Sender(send, exchange, self._door.settings.send_timeout_s)
        try:
            error = await self._serve(scope, headers, receive, sender, exchange)
            if error is not None and not sender.started:
                exchange.code = error.code
                await problem(error, exchange.request_id)(scope, receive, sender)
        except ClientGoneError:
            exchange.gone = True
        finally:
            self._account(exchange)

    def _own_path(self, scope: Scope) -> str:
        """The path below the published prefix, whether or not the proxy cut the prefix off.

        Routing and the OpenAPI document get both from the scope.
        """
        prefix, path = self._door.settings.root_path, str(scope["path"])
        if prefix:
            path = path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
            scope["root_path"], scope["path"] = prefix, prefix + path
        return path

    async def _serve(
        self, scope: Scope, headers: Headers, receive: Receive, sender: _Sender, exchange: Exchange
    ) -> ServiceError | None:
        """Run the application; the error to answer when it has not answered itself."""
        try:
            if (exchange.method, exchange.path) == IMAGE_DOOR:
                await self._serve_image(scope, headers, receive, sender, exchange)
                return None
            if exchange.path.startswith(API_PREFIX) and exchange.method != "OPTIONS":
                self._door.keys.check(api_key(headers))
            await self._app(scope, receive, sender)
        except ServiceError as error:
            return error
        except ClientGoneError:
            raise
        except Exception:
            log.exception("unexpected error", extra={"request_id": exchange.request_id})
            return InternalError("Something went wrong here; the log has it under this request id.")
        return None

    async def _serve_image(
        self, scope: Scope, headers: Headers, receive: Receive, sender: _Sender, exchange: Exchange
    ) -> None:
        """Refuse or admit, then run the application for as long as its client is there.

        The order is that of what a refusal costs and tells: readiness, key, requests in flight,
        bytes in flight, length of the body, other headers.
        """
        door = self._door
        if (unavailable := door.admission.unavailable()) is not None:
            raise unavailable
        door.keys.check(api_key(headers))
        lease = door.admission.admit(content_length(headers))
        try:
            settings = door.settings
            exchange.deadline = exchange.arrived + parse_timeout_s(
                headers.get(TIMEOUT_HEADER), settings.timeout_s, settings.max_timeout_s
            )
            encoding = headers.get("content-encoding", "identity").strip().lower()
            if encoding != "identity":
                raise ContentEncodingError("Send the image as it is, without Content-Encoding.")
            scope[LEASE_KEY] = lease
            body = _Body(
                receive, lease, exchange, settings.max_body_bytes, settings.upload_timeout_s
            )
            await self._while_client_waits(scope, body, sender, lease)
        finally:
            lease.release()

    async def _while_client_waits(
        self, scope: Scope, body: _Body, sender: _Sender, lease: Lease
    ) -> None:
        """Run the application in a task that ends early when the client goes or `lease` aborts.

        Raises what the application raises, or what it was ended by.
        """
        app = asyncio.ensure_future(self._app(scope, body.receive, sender))
        ended_by: list[Exception] = []

        def end(error: Exception) -> None:
            if not ended_by and not app.done():
                ended_by.append(error)
                app.cancel()

        def gone() -> None:
            if not sender.complete:
                end(ClientGoneError())

        lease.abort = end
        watch = asyncio.create_task(body.watch(gone))
        try:
            await asyncio.wait({app})
        finally:
            watch.cancel()
            app.cancel()
            await asyncio.wait({app, watch})
        if not app.cancelled():
            app.result()
        elif ended_by:
            raise ended_by[0]

    def _account(self, exchange: Exchange) -> None:
        seconds = asyncio.get_running_loop().time() - exchange.arrived
        self._door.metrics.answered(exchange, seconds)
        timings = {name: round(value * 1000, 3) for name, value in exchange.timings.items()}
        log.info(
            "request",
            extra={
                "request_id": exchange.request_id,
                "method": exchange.method if exchange.method.isalpha() else "other",
                "route": self._door.metrics.route(exchange.path),
                "status": exchange.status,
                "code": exchange.code,
                "gone": exchange.stage if exchange.gone else None,
                "ms": round(seconds * 1000, 3),
                "body_bytes": exchange.body_bytes,
                "answer_bytes": exchange.answer_bytes,
                "width": exchange.width,
                "height": exchange.height,
                "batch_size": exchange.batch_size,
                "timings_ms": timings,
            },
        )


class _Body:
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
            self._exchange.timings["receive"] = now - self._exchange.arrived
            self._complete.set()
        return message

    async def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client closes its connection after the upload."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        on_gone()


class _Sender:
    """Sends an answer: marked with our headers, sliced, and not for ever."""

    def __init__(self, send: Send, exchange: Exchange, timeout_s: float) -> None:
        self._send = send
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._started_at = 0.0
        self.started = False
        self.complete = False

    async def __call__(self, message: Message) -> None:
        """Pass on one message. Raises `ClientGoneError` when the client does not take it."""
        loop = asyncio.get_running_loop()
        if message["type"] == "http.response.start":
            self.started = True
            self._started_at = loop.time()
            self._exchange.stage = "send"
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
        self._exchange.timings["send"] = loop.time() - self._started_at

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
