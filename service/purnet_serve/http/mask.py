"""`POST /v1/mask`: a photo in, its mask or cutout out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from purnet.imaging import join_names
from purnet_serve.errors import all_errors
from purnet_serve.http.answer import answer_photo, picture_response
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.parameters import MIN_TIMEOUT_MS, TIMEOUT_HEADER, MaskOptions
from purnet_serve.http.photo_route import PhotoRoute
from purnet_serve.http.problem_details import (
    COMMON_HEADERS,
    EXAMPLE_ID,
    EXAMPLE_TRACE,
    openapi_header,
    responses_of,
)
from purnet_serve.http.request import RequestContext
from purnet_serve.http.upload import read_upload
from purnet_serve.observability.labels import Stage
from purnet_serve.settings import Settings

ELSEWHERE = {"not_found", "method_not_allowed", "url_refused", "fetch_failed", "nothing_found"}
"""Codes of errors that a request for a mask is never answered with."""


def router(service: ServiceContext) -> APIRouter:
    """The route and its documentation."""
    routes = APIRouter(route_class=PhotoRoute)

    @routes.post(
        "/v1/mask",
        operation_id="mask",
        summary="Find the salient object of a photo",
        response_class=Response,
        responses=photo_responses(service.settings),
        openapi_extra={
            "parameters": request_headers(service.settings),
            "requestBody": _request_body(service),
        },
    )
    async def mask(request: Request, options: Annotated[MaskOptions, Query()]) -> Response:
        """Answers an 8-bit grey PNG of the photo's displayed size, 255 where the object is; with
        `output=cutout` the photo as RGBA with the mask as its alpha; with `format=webp` as WebP.
        Parameters may also be fields of the form, each given once.
        """
        context: RequestContext = request.state.context
        return await _answer(service, context, request, options)

    return routes


async def _answer(
    service: ServiceContext, context: RequestContext, request: Request, options: MaskOptions
) -> Response:
    """Receive, decode, predict, encode. Raises what docs/api.md lists."""
    with context.enter_stage(Stage.RECEIVE):
        upload = await read_upload(request.stream(), context.headers.get("content-type", ""))
    if upload.fields:
        options = MaskOptions.parse([*request.query_params.multi_items(), *upload.fields])
    wanted = options.codec_options(context.headers.get("accept", ""))
    answer = await answer_photo(service, context, upload.take(), wanted)
    return picture_response(answer, context)


# --- for the OpenAPI document


def request_headers(settings: Settings) -> list[dict[str, Any]]:
    """The headers of a request with a photo, for OpenAPI."""
    # No default: a request without the header is also aimed at the target latency.
    bounds = {"minimum": MIN_TIMEOUT_MS, "maximum": int(settings.max_timeout_s * 1000)}
    plain = "up to 128 letters, digits, `.`, `_`, `:`, `-`. Another one is ignored"
    headers = {
        TIMEOUT_HEADER: openapi_header("Milliseconds from arrival to answer.", 5000, **bounds),
        "X-Request-Id": openapi_header(f"An id of the client's own: {plain}.", EXAMPLE_ID),
        "traceparent": openapi_header("The trace of the client, as W3C has it.", EXAMPLE_TRACE),
        "X-Api-Key": openapi_header(
            "API key, if asked for; or `Authorization: Bearer`.", "an-api-key"
        ),
    }
    return [{"name": name, "in": "header", **header} for name, header in headers.items()]


def _request_body(service: ServiceContext) -> dict[str, Any]:
    taken = f"An image: {join_names(service.limits.formats, 'or')}."
    photo = {"type": "string", "format": "binary", "description": taken}
    form = {
        "type": "object",
        "required": ["image"],
        "description": "`file` and `image_file` are taken for `image` too.",
        "properties": {"image": photo, **MaskOptions.model_json_schema()["properties"]},
        "additionalProperties": False,
    }
    raw = [f"image/{name}" for name in service.settings.formats]
    content = {"multipart/form-data": form, **dict.fromkeys(raw, photo)}
    content["application/octet-stream"] = photo
    schemas = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"required": True, "content": schemas}


def photo_responses(settings: Settings, *more: str) -> dict[int | str, Any]:
    """The answers to a photo, for OpenAPI; `more` are codes of errors that masks do not have."""
    codes = {kind.code for kind in all_errors()} - ELSEWHERE | {*more}
    headers = COMMON_HEADERS | {
        "Cache-Control": openapi_header("The answer must not be cached.", "no-store"),
        "X-Width": openapi_header("Width of the photo as displayed, in pixels.", 4032),
        "X-Height": openapi_header("Height of the photo as displayed, in pixels.", 3024),
        "X-Foreground-Box": openapi_header(
            "`left,top,right,bottom` of where the mask is 128 or more, in displayed pixels, right "
            "and bottom excluded; absent when there is no such place.",
            "812,430,3020,2711",
            pattern=r"^\d+,\d+,\d+,\d+$",
        ),
        "X-Model-Version": openapi_header(
            "Variant and first digits of the sha256 of the weights.", "purnet-lite0-gc@0123456789ab"
        ),
        "Server-Timing": openapi_header(
            "Milliseconds for receive, decode, queue, infer and encode.",
            "receive;dur=3.1, decode;dur=11.0, queue;dur=0.4, infer;dur=31.9",
        ),
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {"image/png": binary, "image/webp": binary}
    answer = {"description": "The mask or the cutout.", "headers": headers, "content": content}
    return {200: answer, **responses_of(*codes, settings=settings)}
