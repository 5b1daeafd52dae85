"""`GET /livez` and `/readyz`: whether to restart this process, and whether to send it work."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from purnet_serve.http.context import Door
from purnet_serve.http.openapi import error_responses


class Alive(BaseModel):
    """The event loop turns."""

    status: str = "alive"


class Ready(BaseModel):
    """Images are being taken, and this is how busy it is."""

    status: str = "ready"
    model: str | None
    requests_in_flight: int
    queued: int


def router(door: Door) -> APIRouter:
    """The routes, over what they share with the guard."""
    routes = APIRouter()

    @routes.get("/livez", responses=error_responses("internal"))
    async def livez() -> Alive:
        """200 as long as the process can answer at all; it says nothing of the model."""
        return Alive()

    @routes.get("/readyz", responses=error_responses("internal", "not_ready", "draining"))
    async def readyz() -> Ready:
        """200 when images are being taken, else 503 with the reason."""
        if (unready := door.admission.unready()) is not None:
            raise unready
        info = door.backend.model
        return Ready(
            model=None if info is None else info.version,
            requests_in_flight=door.admission.requests,
            queued=door.backend.stats().queued,
        )

    return routes
