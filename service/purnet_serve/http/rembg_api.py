"""`/api/remove`: the HTTP API of rembg (`rembg s`), so that its users change an address alone.

What differs is in docs/clients.md: errors are problem documents, models are ours, and alpha matting
is refused instead of being left undone.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, WithJsonSchema, field_validator
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from purnet_serve.errors import ParameterError
from purnet_serve.http.answer import answer_photo, picture_response
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.mask import photo_responses, request_headers
from purnet_serve.http.parameters import Parameters, shorten
from purnet_serve.http.photo_route import PhotoRoute
from purnet_serve.http.request import RequestContext
from purnet_serve.http.upload import FormFields, Upload, read_upload, receive_from_url
from purnet_serve.images.codec import Options
from purnet_serve.images.postprocess import Colour, Postprocessing
from purnet_serve.observability.labels import Stage

PATH = "/api/remove"
MAX_FIELD_BYTES = 256
Level = Annotated[int, Field(ge=0, le=255)]


class RembgOptions(Parameters):
    """The parameters of rembg, in the query or as fields of the form."""

    model: str | SkipJsonSchema[None] = Field(
        None, description="The model that is served here, by its name."
    )
    om: bool = Field(False, description="Only the mask: 8-bit grey.", examples=[True])
    ppm: bool = Field(False, description="Make the mask black and white, with smooth edges.")
    bgc: Annotated[Colour, WithJsonSchema({"type": "string"})] | SkipJsonSchema[None] = Field(
        None,
        description="Colour behind the object: red, green, blue and alpha, 0 to 255 each.",
        examples=["255,255,255,255"],
    )
    a: bool = Field(False, description="Alpha matting; it is not done here, so true is refused.")
    af: Level = Field(240, description="Of alpha matting; has no effect.")
    ab: Level = Field(10, description="Of alpha matting; has no effect.")
    ae: Annotated[int, Field(ge=0)] = Field(10, description="Of alpha matting; has no effect.")

    @field_validator("bgc", mode="before")
    @classmethod
    def _read_colour(cls, value: str) -> Colour | None:
        if not value:
            return None
        parts = [part.strip() for part in value.split(",")]
        if len(parts) not in (3, 4) or not all(_is_level(part) for part in parts):
            raise ValueError("must be three or four numbers from 0 to 255, with commas")
        red, green, blue, *alpha = map(int, parts)
        return red, green, blue, alpha[0] if alpha else 255

    def codec_options(self, served: str | None) -> Options:
        """The same for the codec. Raises `ParameterError` for what is not done here."""
        if self.model not in (None, "", served):
            there = f"there is {served}" if served else "none is loaded"
            name = shorten(self.model or "")
            raise ParameterError("model", f"There is no model {name!r} here; {there}.", actual=name)
        if self.a:
            raise ParameterError("a", "Alpha matting is not done here; leave `a` out.")
        return Options(
            output="mask" if self.om else "cutout",
            postprocessing=Postprocessing(smooth=self.ppm, background=self.bgc),
        )


class FromUrlOptions(RembgOptions):
    """The same with the photo's URL, for GET."""

    url: str = Field(description="https URL of the photo.", examples=["https://a.example/cat.jpg"])


FORM = FormFields(
    images=("file", "image", "image_file"),
    others=RembgOptions.model_fields,
    max_parts=16,
    max_field_bytes=MAX_FIELD_BYTES,
)


def router(service: ServiceContext) -> APIRouter:
    """The routes and their documentation."""
    routes = APIRouter(tags=["rembg's API"], route_class=PhotoRoute)
    settings = service.settings

    @routes.post(
        PATH,
        operation_id="rembg",
        summary="Remove the background, as rembg does",
        response_class=Response,
        responses=photo_responses(settings),
        openapi_extra={"parameters": request_headers(settings), "requestBody": _request_body()},
    )
    async def remove(request: Request) -> Response:
        """Answers the photo as RGBA PNG without its background; with `om=true` the mask.
        Parameters may be fields of the form or part of the URL, each given once.
        """
        context: RequestContext = request.state.context
        query = request.query_params.multi_items()
        # A bad one is refused before the upload is read.
        _codec_options(service, RembgOptions.parse(query))
        with context.enter_stage(Stage.RECEIVE):
            content_type = context.headers.get("content-type", "")
            upload = await read_upload(request.stream(), content_type, FORM)
        options = _codec_options(service, RembgOptions.parse([*query, *upload.fields]))
        return await _answer(service, context, upload, options)

    @routes.get(
        PATH,
        operation_id="rembgFromUrl",
        summary="Remove the background of a photo at a URL, as rembg does",
        response_class=Response,
        responses=photo_responses(settings, "url_refused", "fetch_failed"),
        openapi_extra={"parameters": [*_query(), *request_headers(settings)]},
    )
    async def remove_from_url(request: Request) -> Response:
        """The same for a photo that the service fetches, where `PURNET_FETCH_URLS` is on."""
        context: RequestContext = request.state.context
        parameters = FromUrlOptions.parse(request.query_params.multi_items())
        options = _codec_options(service, parameters)
        with context.enter_stage(Stage.RECEIVE):
            async for _ in request.stream():
                pass  # a body of GET means nothing; from its end on the client is watched
            upload = await receive_from_url(service, context, parameters.url)
        return await _answer(service, context, upload, options)

    return routes


def _codec_options(service: ServiceContext, parameters: RembgOptions) -> Options:
    model = service.backend.model
    return parameters.codec_options(None if model is None else model.name)


async def _answer(
    service: ServiceContext, context: RequestContext, upload: Upload, options: Options
) -> Response:
    answer = await answer_photo(service, context, upload.take(), options)
    return picture_response(answer, context)


def _is_level(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255


# --- for the OpenAPI document


def _query() -> list[dict[str, Any]]:
    schemas = FromUrlOptions.model_json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schemas["required"],
            "description": schema.get("description", ""),
            "schema": schema,
        }
        for name, schema in schemas["properties"].items()
    ]


def _request_body() -> dict[str, Any]:
    photo = {"type": "string", "format": "binary", "description": "The photo."}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": photo, **RembgOptions.model_json_schema()["properties"]},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}
