"""Routes that take a photo: FastAPI documents them, the middleware admits their requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

PhotoHandler = Callable[[Request], Awaitable[Response]]


class PhotoRoute(APIRoute):
    """A route whose endpoint takes the request, and `options` if it has parameters in the query.

    `options` is of a class of `purnet_serve.http.parameters`. The middleware, which knows the route
    already, calls the handler itself: FastAPI's own way to an endpoint (matching of routes, exit
    stacks, dependencies) would be work on the event loop that changes nothing.
    """

    def get_route_handler(self) -> PhotoHandler:  # type: ignore[override]
        """Parse the query into `options`, and call the endpoint."""
        endpoint = self.endpoint
        parameters = get_type_hints(endpoint).get("options")

        async def handle(request: Request) -> Response:
            response: Response
            if parameters is None:
                response = await endpoint(request)
            else:
                options = parameters.parse(request.query_params.multi_items())
                response = await endpoint(request, options)
            return response

        return handle
