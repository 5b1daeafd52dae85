"""The web application, as a pure function of its settings, backend and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from purnet_serve.errors import BadRequestError, MethodNotAllowedError, NotFoundError, ServiceError
from purnet_serve.http import mask, models
from purnet_serve.http import metrics as metrics_route
from purnet_serve.http import probes as health
from purnet_serve.http.context import Door
from purnet_serve.http.middleware import Guard
from purnet_serve.http.openapi import PROBLEM_SCHEMA
from purnet_serve.http.problem_details import problem
from purnet_serve.http.request import exchange_of
from purnet_serve.inference.backend import Backend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

_EXPOSED_HEADERS = (
    "Retry-After",
    "Server-Timing",
    "X-Foreground-Box",
    "X-Height",
    "X-Model-Version",
    "X-Request-Id",
    "X-Width",
)


def create_app(settings: Settings, backend: Backend, metrics: Metrics) -> FastAPI:
    """Build the application. Nothing is started or read before its lifespan begins.

    `app.state.door` is what the server needs to drain it.
    """
    door = Door.build(settings, backend, metrics.http)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        door.keys.load()
        await backend.start()
        try:
            yield
        finally:
            await backend.stop()
            await door.close()

    app = _Documented(
        title="PurNet Serve",
        summary="A photo in, a mask of its salient object out.",
        version=version("purnet-serve"),
        redirect_slashes=False,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.door = door
    routers = [mask.router(door), models.router(door), health.router(door)]
    if settings.metrics_port is None:
        routers.append(metrics_route.router(metrics.registry))
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _answer_routing_error)
    app.add_middleware(Guard, door=door)
    if settings.cors_origins:
        # Outside the guard, so that a page can read its refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=(
                "Authorization",
                "Content-Type",
                "X-Api-Key",
                "X-Request-Id",
                "X-Timeout-Ms",
            ),
            expose_headers=_EXPOSED_HEADERS,
        )
    routes = [route for router in routers for route in router.routes]
    metrics.http.register(
        {route.path: route.methods or () for route in routes if isinstance(route, APIRoute)}
    )
    metrics.http.watch(
        requests=lambda: door.admission.requests,
        upload_bytes=lambda: door.admission.bytes,
        answer_bytes=lambda: door.answers.reserved_bytes,
        pixel_bytes=lambda: door.pixels.reserved_bytes,
    )
    return app


class _Documented(FastAPI):
    """Adds the one schema that no signature mentions."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        document = super().openapi()
        document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
        return document


async def _answer_routing_error(request: Request, raised: Exception) -> Response:
    """Starlette's own 404, 405 and the like, in our words."""
    if not isinstance(raised, HTTPException):
        raise raised
    error: ServiceError
    if raised.status_code == 404:
        error = NotFoundError("There is nothing at this path; see /docs.")
    elif raised.status_code == 405:
        error = MethodNotAllowedError("This path does not take this method.")
    else:
        error = BadRequestError(raised.detail)
    exchange = exchange_of(request.scope)
    exchange.code = error.code
    return problem(error, exchange.request_id, dict(raised.headers or {}))
