"""The outermost layer, in pure ASGI: every request passes here first and ends here last.

An image upload is refused, if it is, before its first byte is asked for: `receive()` is what makes
the server send `100 Continue` and read on. FastAPI would read all of it before a dependency runs,
and its middleware base class hides that a client has gone.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from purnet_serve.errors import (
    ContentEncodingError,
    InternalError,
    ServiceError,
)
from purnet_serve.http.admission import Lease
from purnet_serve.http.context import Door
from purnet_serve.http.options import TIMEOUT_HEADER, parse_timeout_s
from purnet_serve.http.problem_details import problem
from purnet_serve.http.request import LEASE_KEY, SCOPE_KEY, ClientGoneError, Exchange, request_id
from purnet_serve.http.streams import Body, Sender, api_key, content_length

API_PREFIX = "/v1/"
IMAGE_DOOR = ("POST", "/v1/mask")
PROBED = ("/livez", "/readyz", "/metrics")
"""Asked every few seconds by machines; logged when the answer is news."""

log = logging.getLogger("purnet_serve.access")


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
        sender = Sender(send, exchange, self._door.settings.send_timeout_s)
        sender.on_complete = lambda: self._account(exchange)
        try:
            error = await self._serve(scope, headers, receive, sender, exchange)
            if error is not None and not sender.started:
                exchange.code = error.code
                await problem(error, exchange.request_id)(scope, receive, sender)
        except ClientGoneError:
            exchange.gone = True
        finally:
            # An answer that was cut off is none, whatever status it began with.
            exchange.gone = exchange.gone or (sender.started and not sender.complete)
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
        self, scope: Scope, headers: Headers, receive: Receive, sender: Sender, exchange: Exchange
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
        self, scope: Scope, headers: Headers, receive: Receive, sender: Sender, exchange: Exchange
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
            account = sender.on_complete

            def complete() -> None:
                lease.release()
                account()

            sender.on_complete = complete
            body = Body(
                receive, lease, exchange, settings.max_body_bytes, settings.upload_timeout_s
            )
            await self._while_client_waits(scope, body, sender, lease)
        finally:
            lease.release()

    async def _while_client_waits(
        self, scope: Scope, body: Body, sender: Sender, lease: Lease
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
        """Count and log an exchange, the first time it is said to be over."""
        if exchange.over:
            return
        exchange.over = True
        seconds = asyncio.get_running_loop().time() - exchange.arrived
        metrics = self._door.metrics
        if exchange.gone:
            metrics.client_left(exchange.stage)
        else:
            metrics.answered(
                exchange.path, exchange.method, exchange.status, exchange.code, seconds
            )
            pixels = exchange.width * exchange.height
            metrics.measured(exchange.timings, exchange.body_bytes, pixels)
        timings = {stage.value: round(s * 1000, 3) for stage, s in exchange.timings.items()}
        route = metrics.route(exchange.path)
        quiet = route in PROBED and exchange.status == 200
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={
                "request_id": exchange.request_id,
                "method": exchange.method if exchange.method.isalpha() else "other",
                "route": route,
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
