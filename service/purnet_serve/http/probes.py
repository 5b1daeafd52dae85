"""What machines and operators ask: `/livez`, `/readyz`, `/metrics` and `/v1/models`."""

from __future__ import annotations

import gzip

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder, gzip_accepted
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from purnet_serve.http.context import ServiceContext
from purnet_serve.http.problem_details import responses_of


class Alive(BaseModel):
    """The event loop runs."""

    status: str = "alive"


class Ready(BaseModel):
    """Images are being taken, and this is how busy the service is."""

    status: str = "ready"
    model: str | None
    requests_in_flight: int
    queued: int = Field(description="Requests and images that wait.")


class Model(BaseModel):
    """One model that answers `POST /v1/mask`."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(description="Variant.", examples=["purnet-lite0-gc"])
    version: str = Field(
        description="As in `X-Model-Version`.", examples=["purnet-lite0-gc@0123456789ab"]
    )
    sha256: str = Field(description="Digest of the checkpoint file, in hex.")
    input_size: int = Field(description="Side of the square the network sees.", examples=[320])
    device: str = Field(description="Where it runs.", examples=["cpu"])
    engine: str = Field(description="How it is run.", examples=["eager"])


class Models(BaseModel):
    """The models being served; empty until one is loaded."""

    models: list[Model]


def router(service: ServiceContext) -> APIRouter:
    """The routes; `/metrics` is one of them unless it has a port of its own."""
    routes = APIRouter()

    @routes.get("/livez", responses=responses_of("internal"))
    async def livez() -> Alive:
        """200 as long as the process can answer at all, with or without a model."""
        return Alive()

    @routes.get("/readyz", responses=responses_of("internal", "not_ready", "draining"))
    async def readyz() -> Ready:
        """200 when images are being taken, else 503 with the reason."""
        if (error := service.admission.readiness_error()) is not None:
            raise error
        info = service.backend.model
        return Ready(
            model=None if info is None else info.version,
            requests_in_flight=service.admission.requests,
            queued=service.scheduler.schedule.waiting + service.backend.queued,
        )

    @routes.get("/v1/models", responses=responses_of("key_missing", "key_unknown", "internal"))
    async def models() -> Models:
        """The model that answers, with the digest of its weights."""
        info = service.backend.model
        return Models(models=[] if info is None else [Model.model_validate(info)])

    if service.settings.metrics_port is not None:
        return routes

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "content": {"text/plain": {}, "application/openmetrics-text": {}},
                "description": "Prometheus' text format, or OpenMetrics where `Accept` names it.",
            }
        },
    )
    async def metrics(request: Request) -> Response:
        """Every metric, in Prometheus' text format or in OpenMetrics; compressed if asked for."""
        try:
            encode, media_type = choose_encoder(",".join(request.headers.getlist("accept")))
        except TypeError:  # the library's, for a version that is no number
            encode, media_type = choose_encoder("")
        page, headers = encode(service.metrics.registry), {"Vary": "Accept, Accept-Encoding"}
        if gzip_accepted(",".join(request.headers.getlist("accept-encoding"))):
            page, headers["Content-Encoding"] = gzip.compress(page), "gzip"
        return Response(page, media_type=media_type, headers=headers)

    return routes
