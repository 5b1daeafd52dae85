"""The web application, made from settings, backend and metrics."""

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
from purnet_serve.http import mask, probes, rembg_api, removebg_api
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.docs_page import docs_page
from purnet_serve.http.middleware import RequestMiddleware
from purnet_serve.http.page import page_routes
from purnet_serve.http.photo_route import PhotoRoute
from purnet_serve.http.problem_details import NOTHING_HERE, Problem, problem
from purnet_serve.inference.backend import Backend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

_REQUEST_HEADERS = "Authorization Content-Type X-Api-Key X-Request-Id X-Timeout-Ms Traceparent"
_ANSWER_HEADERS = (
    "Retry-After Server-Timing Traceparent X-Credits-Charged X-Foreground-Box X-Foreground-Height "
    "X-Foreground-Left X-Foreground-Top X-Foreground-Width X-Height X-Model-Version X-Request-Id "
    "X-Type X-Width"
)


def create_app(settings: Settings, backend: Backend, metrics: Metrics) -> FastAPI:
    """Build the application. Nothing is started or read before its lifespan begins.

    `app.state.service` is the `ServiceContext`, which the server drains.
    """
    service = ServiceContext(settings, backend, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.keys.load()
        await backend.start()
        try:
            yield
        finally:
            await backend.stop()
            await service.decode_pool.close()
            await service.encode_pool.close()

    app = _App(
        title="PurNet Serve",
        summary="A photo in, a mask of its salient object out.",
        version=version("purnet-serve"),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    routers = [mask.router(service), probes.router(service)]
    if settings.rembg_api:
        routers.append(rembg_api.router(service))
    if settings.removebg_api:
        routers.extend(removebg_api.routers(service))
    for router in routers:
        app.include_router(router)
    app.add_route("/docs", docs_page(app.openapi), include_in_schema=False)
    if settings.page:
        app.router.routes.extend(page_routes(settings.root_path))
    _handle_errors(app)
    app.add_middleware(RequestMiddleware, service=service)
    if settings.cors_origins:
        # Around the other middleware, so that a page can read its refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=_REQUEST_HEADERS.split(),
            expose_headers=_ANSWER_HEADERS.split(),
        )
    routes = [route for router in routers for route in router.routes]
    methods: dict[str, set[str]] = {}
    for route in routes:
        if isinstance(route, PhotoRoute):
            for method in route.methods or ():
                service.photo_routes[method, route.path] = route.get_route_handler()
        if isinstance(route, APIRoute):
            methods.setdefault(route.path, set()).update(route.methods or ())
    metrics.http.register(methods, {path for _, path in service.photo_routes})
    app.state.methods = methods
    return app


class _App(FastAPI):
    """Adds the schema of errors, which no signature mentions, to the OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        document = super().openapi()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document


def _handle_errors(app: FastAPI) -> None:
    """Errors of routing as errors of ours."""

    @app.exception_handler(HTTPException)
    async def answer_routing_error(request: Request, raised: HTTPException) -> Response:
        error: ServiceError = BadRequestError(raised.detail)
        headers = dict(raised.headers or {})
        if raised.status_code == 404:
            error = NotFoundError(NOTHING_HERE)
        elif raised.status_code == 405:
            # Of a path with several routes FastAPI names the methods of one.
            path = request.state.context.path
            allowed = request.app.state.methods.get(path) or set(headers["Allow"].split(", "))
            methods = sorted(allowed | {"HEAD"} if "GET" in allowed else allowed)
            headers["Allow"] = ", ".join(methods)
            error = MethodNotAllowedError(f"This path takes {' or '.join(methods)}.")
        context = request.state.context
        context.code = error.code
        answered = request.app.state.service.error_answers.get(context.path, problem)
        response: Response = answered(error, context.id, headers)
        return response
