"""The outermost layer, in pure ASGI: every request begins and ends here.

An upload that is refused is refused before its first byte is asked for: `receive()` makes the
server send `100 Continue` and read on. FastAPI would read all of it before a dependency runs, and
Starlette's `BaseHTTPMiddleware` hides that a client has disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from purnet_serve.errors import (
    ContentEncodingError,
    InternalError,
    NotFoundError,
    ServiceError,
)
from purnet_serve.http.api_keys import offered_key
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.parameters import TIMEOUT_HEADER, parse_timeout_s
from purnet_serve.http.photo_route import PhotoHandler
from purnet_serve.http.problem_details import NOTHING_HERE, problem
from purnet_serve.http.request import (
    ClientGoneError,
    RequestContext,
    content_length,
    continued_trace,
)
from purnet_serve.http.upload import UploadStream
from purnet_serve.observability.labels import Stage
from purnet_serve.settings import MIB

API_PREFIXES = ("/v1/", "/v1.0/")
"""Of paths that ask for a key, beside the routes that take a photo."""
_ABSOLUTE_FORM = re.compile(r"https?://[^/]*", re.IGNORECASE)
"""What precedes the path in a request target such as `http://host/v1/mask` (RFC 9112, 3.2.2)."""
PROBES = ("/livez", "/readyz", "/metrics")
"""Requested every few seconds by machines: logged at debug level while they succeed."""
SLICE_BYTES = 64 * 1024
"""An answer is sent in slices, each when the one before was taken; the server buffers no more."""
LINGER_S = 20.0
"""Seconds for which the rest of a body is read after a refusal; uploads have as many to arrive."""
LINGER_IDLE_S = 3.0
"""Seconds without a byte after which nothing more is expected; a draining server waits no longer
than this in all, so it must be below `server.GRACE_S`.
"""
LINGER_BYTES = 256 * MIB
"""Bytes that are read and thrown away after a refusal: several times what any upload may have."""
_LOGGED = "status", "code", "body_bytes", "answer_bytes", "width", "height", "batch_size"
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # short and safe in logs

log = logging.getLogger("purnet_serve.access")

_ids = random.Random()  # noqa: S311  (ids are no secrets, and the system's source is slower)


class RequestMiddleware:
    """Wraps the application. `service` is what it shares with the routes."""

    def __init__(self, app: ASGIApp, service: ServiceContext) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = self._service.settings
        context = self._begin(scope)

        async def receive_body() -> Message:
            message = await receive()
            context.body_received = not message.get("more_body", False)
            return message

        answer = ResponseStream(
            send, context, settings.send_timeout_s, self._end, lambda: self._lingers(scope, context)
        )
        try:
            # HEAD is answered as GET is, without the body. Only the application may see another
            # method: the server goes by the scope.
            routed = {**scope, "method": "GET"} if context.method == "HEAD" else scope
            error = await self._serve(routed, receive_body, answer, context)
            if error is not None and not context.status:
                context.code = error.code
                answered = self._service.error_answers.get(context.path, problem)
                response = answered(error, context.id, retry_after_s=settings.retry_after_s)
                await response(scope, receive_body, answer)
            if answer.withheld:
                await self._read_on(receive_body, context)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientGoneError:
            context.gone = True
        finally:
            # An answer that was cut off is none, whatever its status.
            context.gone = context.gone or (context.status != 0 and not context.complete)
            self._end(context)

    def _begin(self, scope: Scope) -> RequestContext:
        """Make the context of a request and put it into its scope."""
        prefix, path = self._service.settings.root_path, str(scope["path"])
        path = _ABSOLUTE_FORM.sub("", path, count=1) if not path.startswith("/") else path
        path = path.removesuffix("/") or "/"
        if prefix:
            # Routing and the OpenAPI document get the published prefix and the path below it from
            # the scope, whether or not the proxy cut the prefix off.
            path = path.removeprefix(prefix) if f"{path}/".startswith(f"{prefix}/") else path
            path = path or "/"
            scope["root_path"] = prefix
        scope["path"] = prefix + path
        headers = Headers(scope=scope)
        offered_id = headers.get("x-request-id", "")
        now = asyncio.get_running_loop().time()
        context = RequestContext(
            id=offered_id if _PLAIN_ID.fullmatch(offered_id) else f"{_ids.getrandbits(128):032x}",
            method=scope["method"],
            path=path,
            headers=headers,
            arrived=now,
            deadline=now + self._service.settings.timeout_s,
            upload_deadline=now + self._service.settings.upload_timeout_s,
            traceparent=continued_trace(headers),
        )
        scope.setdefault("state", {})["context"] = context
        return context

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext
    ) -> ServiceError | None:
        """Run the application. Returns the error to answer when it has not answered itself."""
        try:
            if _CONTROL_CHARACTER.search(context.path):
                # A route matches before a final line feed too: its path would not be in
                # `photo_routes`, and the request would run without having been admitted.
                raise NotFoundError(NOTHING_HERE)
            handler = self._service.photo_routes.get((scope["method"], context.path))
            if handler is not None:
                await self._serve_photo(handler, scope, receive, send, context)
                return None
            if context.path.startswith(API_PREFIXES) and context.method != "OPTIONS":
                self._service.keys.check(offered_key(context.headers))
            await self._app(scope, receive, send)
        except ServiceError as error:
            return error
        except ClientGoneError:
            raise
        except Exception:
            ids = {"request_id": context.id, "trace_id": context.trace_id}
            log.exception("unexpected error", extra=ids)
            return InternalError("Something went wrong here; the log has it under this request id.")
        return None

    async def _serve_photo(
        self,
        handler: PhotoHandler,
        scope: Scope,
        receive: Receive,
        send: Send,
        context: RequestContext,
    ) -> None:
        """Refuse or admit, then run the handler for as long as its client is there.

        The order is that of what a refusal costs and discloses: readiness, key, requests in
        flight, bytes in flight, length of the body, other headers, time until the answer.
        """
        service, settings, headers = self._service, self._service.settings, context.headers
        if (error := service.admission.admission_error()) is not None:
            raise error
        service.keys.check(offered_key(headers))
        service.admission.admit(context, content_length(headers))
        upload = UploadStream(receive, context, settings.max_body_bytes)
        try:
            wanted = headers.getlist(TIMEOUT_HEADER)
            timeout_s = parse_timeout_s(wanted, settings.timeout_s, settings.max_timeout_s)
            context.deadline = context.arrived + timeout_s
            if headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise ContentEncodingError("Send the image as it is, without Content-Encoding.")
            service.scheduler.accept(context, timeout_s if wanted else None)
            await context.run(_answer(handler, scope, upload.next, send))
        finally:
            upload.close()
            service.scheduler.release(context)
            service.admission.release(context)

    def _lingers(self, scope: Scope, context: RequestContext) -> bool:
        """Whether the connection closes after this answer while its request is still arriving.

        Closing it on unread input would reset it, and the client would lose the answer.
        """
        headers = context.headers
        if context.body_received or (
            headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        ):
            return False
        options = ",".join(headers.getlist("connection")).lower().split(",")
        closes = scope["http_version"] == "1.0" or "close" in (option.strip() for option in options)
        return closes or self._service.admission.draining

    async def _read_on(self, receive: Receive, context: RequestContext) -> None:
        """Throw away what still comes of the body, within a time and a number of bytes.

        The request holds nothing by then: it was released when its answer was sent.
        """
        loop, seen = asyncio.get_running_loop(), 0
        started = loop.time()
        while not context.body_received and seen < LINGER_BYTES:
            most = LINGER_IDLE_S if self._service.admission.draining else LINGER_S
            try:
                async with asyncio.timeout_at(min(started + most, loop.time() + LINGER_IDLE_S)):
                    seen += len((await receive()).get("body", b""))
            except TimeoutError:
                return

    def _end(self, context: RequestContext) -> None:
        """Release, count and log a request; a second call does nothing."""
        if context.ended:
            return
        context.ended = True
        self._service.admission.release(context)
        seconds = asyncio.get_running_loop().time() - context.arrived
        metrics = self._service.metrics
        if context.gone:
            metrics.client_left(context.stage)
        else:
            # A service that starts or drains says so to probes every second: that is no error.
            code = None if context.path in PROBES else context.code
            metrics.answered(context.path, context.method, context.status, code, seconds)
            pixels = context.width * context.height
            metrics.measured(context.timings, context.body_bytes, pixels)
        route = metrics.route(context.path)
        level = logging.DEBUG if route in PROBES and context.status == 200 else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = {
            "request_id": context.id,
            "trace_id": context.trace_id,
            "method": context.method if context.method.isalpha() else "other",
            "route": route,
            "ms": round(seconds * 1000, 3),
            "gone": context.stage.value if context.gone else None,
            **{name: getattr(context, name) for name in _LOGGED},
            "timings_ms": {s.value: round(t * 1000, 3) for s, t in context.timings.items()},
        }
        log.log(level, "request", extra=fields)


async def _answer(handler: PhotoHandler, scope: Scope, receive: Receive, send: Send) -> None:
    response = await handler(Request(scope, receive))
    await response(scope, receive, send)


@dataclass(slots=True)
class ResponseStream:
    """Sends an answer: with the headers that all have, in slices, within a time limit."""

    send: Send
    context: RequestContext
    timeout_s: float
    on_complete: Callable[[RequestContext], None]
    """Called after the last byte, before the client's next request can be read."""
    withhold: Callable[[], bool]
    """Whether the event that ends the answer is withheld, so that its connection stays open."""
    withheld: bool = False
    _started: float = 0.0

    async def __call__(self, message: Message) -> None:
        """Send one message. Raises `ClientGoneError` when the client does not take it in time."""
        loop, context = asyncio.get_running_loop(), self.context
        starts = message["type"] == "http.response.start"
        if starts:
            self._started = loop.time()
        try:
            # The headers may wait too: for a client that does not read the answer before this one.
            async with asyncio.timeout_at(self._started + self.timeout_s):
                if starts:
                    await self._send_start(message)
                    return
                await self._send_slices(message.get("body", b""), message.get("more_body", False))
        except TimeoutError:
            raise ClientGoneError from None
        if Stage.ENCODE in context.timings:
            # Else it is an error, a probe or a page, which say nothing of how masks are read.
            context.timings[Stage.SEND] = loop.time() - self._started
        if context.complete:
            self.on_complete(context)

    async def _send_start(self, message: Message) -> None:
        context = self.context
        context.stage = Stage.SEND
        context.status = message["status"]
        ours = [(b"x-request-id", context.id.encode()), (b"x-content-type-options", b"nosniff")]
        if context.traceparent is not None:
            ours.append((b"traceparent", context.traceparent.encode()))
        message["headers"] = [*message.get("headers", ()), *ours]
        await self.send(message)

    async def _send_slices(self, body: bytes, more: bool) -> None:
        context = self.context
        if context.method == "HEAD":
            body = b""
        for start in range(0, max(1, len(body)), SLICE_BYTES):
            piece = body[start : start + SLICE_BYTES]
            context.complete = start + SLICE_BYTES >= len(body) and not more
            self.withheld = context.complete and self.withhold()
            more_body = not context.complete or self.withheld
            part = {"type": "http.response.body", "body": piece, "more_body": more_body}
            await self.send(part)
            context.answer_bytes += len(piece)
