"""`GET /v1/models`: which weights answer now."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from purnet_serve.http.context import Door
from purnet_serve.http.openapi import error_responses
from purnet_serve.inference.backend import ModelInfo


class Model(BaseModel):
    """One model that answers `POST /v1/mask`."""

    name: str = Field(description="Variant.", examples=["purnet-lite0"])
    version: str = Field(
        description="Name of these exact weights, as in `X-Model-Version`.",
        examples=["purnet-lite0@0123456789ab"],
    )
    sha256: str = Field(description="Digest of the checkpoint file, in hex.")
    input_size: int = Field(description="Side of the square the network sees.", examples=[320])
    device: str = Field(description="Where it runs.", examples=["cpu"])
    engine: str = Field(description="How it is run.", examples=["eager"])

    @classmethod
    def of(cls, info: ModelInfo) -> Model:
        """What a client may know of a model."""
        return cls(
            name=info.name,
            version=info.version,
            sha256=info.sha256,
            input_size=info.input_size,
            device=info.device,
            engine=info.engine,
        )


class Models(BaseModel):
    """The models being served; empty until one is loaded."""

    models: list[Model]


def router(door: Door) -> APIRouter:
    """The route, over what it shares with the guard."""
    routes = APIRouter()

    @routes.get("/v1/models", responses=error_responses("key_missing", "key_unknown", "internal"))
    async def models() -> Models:
        """The model that answers, with the digest of its weights."""
        info = door.backend.model
        return Models(models=[] if info is None else [Model.of(info)])

    return routes
