"""`/v1.0/removebg` and `/v1.0/account`: the API of remove.bg, from its public documentation.

Its users change an address alone. What differs is in docs/clients.md.
"""

from __future__ import annotations

import binascii
import json
from typing import Any

import multipart
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from purnet.imaging import read_header
from purnet_serve.errors import (
    BodyTooLargeError,
    BusyError,
    EmptyBodyError,
    FetchError,
    ImageError,
    KeyMissingError,
    KeyUnknownError,
    MissingImageError,
    NothingFoundError,
    ParameterError,
    ServiceError,
    SideTooLongError,
    TooManyPixelsError,
    UnsupportedMediaError,
    UrlRefusedError,
)
from purnet_serve.http.answer import PhotoAnswer, answer_headers, answer_photo
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.mask import photo_responses, request_headers
from purnet_serve.http.parameters import shorten
from purnet_serve.http.photo_route import PhotoRoute
from purnet_serve.http.problem_details import COMMON_HEADERS, openapi_header, problem
from purnet_serve.http.removebg_body import (
    BASE64_FIELD,
    PARSED_BYTES,
    TEXT_KINDS,
    decoded_photo,
    fields_of,
)
from purnet_serve.http.removebg_options import RemoveBgOptions
from purnet_serve.http.request import RequestContext
from purnet_serve.http.upload import FormFields, Upload, read_upload, receive_from_url
from purnet_serve.observability.labels import Stage

PATH, ACCOUNT_PATH = "/v1.0/removebg", "/v1.0/account"
FREE_CALLS = 1_000_000
"""What an account always has left: nothing is counted, and some clients stop at 0."""
PIECE_BYTES = 48 * 1024
"""Bytes of a picture that are written as base64 at a time; a multiple of 3, so without padding."""
FORM = FormFields(
    images=("image_file",),
    others=RemoveBgOptions.model_fields,
    base64=BASE64_FIELD,
    image_required=False,
    max_parts=32,
    max_field_bytes=2048,
)
_ERRORS: list[tuple[type[ServiceError], int, str, str]] = [
    (KeyMissingError, 403, "auth_failed", "Missing API Key"),
    (KeyUnknownError, 403, "auth_failed", "Invalid API Key"),
    (BusyError, 429, "rate_limit_exceeded", "Rate limit exceeded"),
    (BodyTooLargeError, 400, "file_too_large", "File too large"),
    (UnsupportedMediaError, 400, "invalid_file_type", "Invalid file type"),
    (TooManyPixelsError, 400, "resolution_too_high", "Image resolution too high"),
    (SideTooLongError, 400, "resolution_too_high", "Image resolution too high"),
    (NothingFoundError, 400, "unknown_foreground", "Could not identify foreground in image"),
    (ImageError, 400, "failed_to_read_image", "There was an error reading the image"),
    (MissingImageError, 400, "missing_source", "No image given"),
    (EmptyBodyError, 400, "missing_source", "No image given"),
    (UrlRefusedError, 400, "invalid_image_url", "Invalid image_url"),
    (FetchError, 400, "failed_image_download", "Failed to download image from given image_url"),
]
"""By the first class that fits: status, code and title of remove.bg."""


def routers(service: ServiceContext) -> tuple[APIRouter, APIRouter]:
    """The routes and their documentation: for photos, and for the rest."""
    photos = APIRouter(tags=["remove.bg's API"], route_class=PhotoRoute)
    others = APIRouter(tags=["remove.bg's API"])
    settings = service.settings
    service.error_answers |= {PATH: answer_error, ACCOUNT_PATH: answer_error}

    @photos.post(
        PATH,
        operation_id="removebg",
        summary="Remove the background, as remove.bg does",
        response_class=Response,
        responses=_responses(service),
        openapi_extra={"parameters": request_headers(settings), "requestBody": _request_body()},
    )
    async def removebg(request: Request) -> Response:
        """Answers the picture, or with `Accept: application/json` JSON with the picture in base64.
        The body is a form, urlencoded, or JSON.
        """
        context: RequestContext = request.state.context
        for name in map(shorten, request.query_params):
            detail = f"The parameter {name!r} belongs in the body, not in the URL."
            raise ParameterError(name, detail)
        with context.enter_stage(Stage.RECEIVE):
            upload, options = await _receive(service, context, request)
        answer = await answer_photo(service, context, upload.take(), options.codec_options())
        return await _answer(service, context, answer, options)

    @others.get(ACCOUNT_PATH, operation_id="removebgAccount", responses=_account_responses())
    async def account() -> dict[str, Any]:
        """What an account has left, as remove.bg tells it. Nothing is counted here."""
        none = dict.fromkeys(("total", "subscription", "payg", "enterprise"), 0)
        attributes = {"credits": none, "api": {"free_calls": FREE_CALLS, "sizes": "all"}}
        return {"data": {"attributes": attributes}}

    return photos, others


def answer_error(
    error: ServiceError,
    request_id: str,
    headers: dict[str, str] | None = None,
    retry_after_s: int = 1,
) -> Response:
    """An error as remove.bg writes it, with the headers that it has as a problem document."""
    status, code, title = error.status, error.code, error.title
    for kind, its_status, its_code, its_title in _ERRORS:
        if isinstance(error, kind):
            status, code, title = its_status, its_code, its_title
            break
    if isinstance(error, MissingImageError) and error.limit is not None:
        code, title = "multiple_sources", "Multiple image sources given"
    if isinstance(error, ParameterError):
        code, title = f"invalid_{error.parameter}", f"Invalid {error.parameter} parameter given"
    answer = problem(error, request_id, headers, retry_after_s)
    members = {"title": title, "code": code, "detail": error.detail}
    answer.status_code = status
    answer.body = json.dumps({"errors": [members]}, ensure_ascii=False).encode()
    answer.headers["Content-Length"] = str(len(answer.body))
    answer.headers["Content-Type"] = "application/json"
    return answer


async def _receive(
    service: ServiceContext, context: RequestContext, request: Request
) -> tuple[Upload, RemoveBgOptions]:
    """The photo of a request, wherever it is, and the parameters."""
    content_type = context.headers.get("content-type", "")
    kind, _ = multipart.parse_options_header(content_type)
    if kind in TEXT_KINDS:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
        service.admission.reserve(context, PARSED_BYTES * len(body))
        fields, base64 = await service.decode_pool.run(0, fields_of, body, kind)
        upload = Upload(b"", tuple(fields), base64)
        del body, base64
    else:
        upload = await read_upload(request.stream(), content_type, FORM)
        if upload.base64:
            service.admission.reserve(context, PARSED_BYTES * context.body_bytes)
    options = RemoveBgOptions.read(upload.fields)
    sources = [upload.image, upload.base64, options.image_url]
    if not any(sources):
        names = "image_file, image_file_b64 or image_url"
        raise MissingImageError(f"Send the photo as {names}.")
    if (given := sum(map(bool, sources))) > 1:
        detail = "Send one of image_file, image_file_b64 and image_url."
        raise MissingImageError(detail, limit=1, actual=given)
    if upload.base64:
        photo = await service.decode_pool.run(0, decoded_photo, upload.base64)
        if not photo:
            raise EmptyBodyError("`image_file_b64` holds nothing.")
        return Upload(photo), options
    if options.image_url:
        return await receive_from_url(service, context, options.image_url), options
    return Upload(upload.take()), options


async def _answer(
    service: ServiceContext, context: RequestContext, answer: PhotoAnswer, options: RemoveBgOptions
) -> Response:
    if answer.box is None:
        raise NothingFoundError("Nothing in this photo stands out.")
    picture = read_header(answer.body)
    left, top, right, bottom = answer.box
    place = {"top": top, "left": left, "width": right - left, "height": bottom - top}
    headers = answer_headers(answer, context) | {
        "X-Width": str(picture.width),
        "X-Height": str(picture.height),
        "X-Credits-Charged": "0",
        **{f"X-Foreground-{name.title()}": str(value) for name, value in place.items()},
    }
    if options.type_level != "none":
        headers["X-Type"] = "other"
    if "application/json" not in context.headers.get("accept", ""):
        return Response(answer.body, media_type=answer.media_type, headers=headers)
    members = {f"foreground_{name}": value for name, value in place.items()}
    return _JsonAnswer(answer.body, members, headers)


class _JsonAnswer(Response):
    """JSON with a picture in base64, made in pieces as they are sent: the picture alone is held."""

    media_type = "application/json"

    def __init__(self, picture: bytes, members: dict[str, int], headers: dict[str, str]) -> None:
        super().__init__(headers=headers)
        self._picture = picture
        self._before = b'{"data": {"result_b64": "'
        self._after = b'", %b}' % json.dumps(members).encode("ascii")[1:]
        base64_bytes = (len(picture) + 2) // 3 * 4
        length = len(self._before) + base64_bytes + len(self._after)
        self.headers["Content-Length"] = str(length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, as ASGI has it."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await _send_part(send, self._before)
        for begin in range(0, len(self._picture), PIECE_BYTES):
            piece = self._picture[begin : begin + PIECE_BYTES]
            await _send_part(send, binascii.b2a_base64(piece, newline=False))
        await _send_part(send, self._after, more_body=False)


async def _send_part(send: Send, part: bytes, *, more_body: bool = True) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": more_body})


# --- for the OpenAPI document


def _request_body() -> dict[str, Any]:
    properties = RemoveBgOptions.model_json_schema()["properties"]
    photo = {"type": "string", "format": "binary", "description": "The photo."}
    text = {"type": "object", "properties": properties, "additionalProperties": False}
    form = {**text, "properties": {"image_file": photo, **properties}}
    content = {"multipart/form-data": {"schema": form}}
    content |= {kind: {"schema": text} for kind in TEXT_KINDS}
    return {"required": True, "content": content}


_ERROR_SCHEMA = {
    "type": "object",
    "required": ["errors"],
    "properties": {
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["title", "code"],
                "properties": {name: {"type": "string"} for name in ("title", "code", "detail")},
            },
        }
    },
}


def _responses(service: ServiceContext) -> dict[int | str, Any]:
    ok = photo_responses(service.settings)[200]
    headers = ok["headers"] | {
        "X-Width": openapi_header("Width of the answer in pixels.", 612),
        "X-Height": openapi_header("Height of the answer in pixels.", 408),
        "X-Type": openapi_header("Always `other`: what is found is not classified.", "other"),
        "X-Credits-Charged": openapi_header("Always 0.", 0),
        **{
            f"X-Foreground-{name}": openapi_header("Of the object in the photo, in pixels.", 40)
            for name in ("Top", "Left", "Width", "Height")
        },
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), binary)
    content["application/json"] = {"schema": {"type": "object"}}
    answer = {"description": "The picture.", "headers": headers, "content": content}
    return {200: answer, **_errors(400, 403, 408, 429, 500, 503, 504)}


def _account_responses() -> dict[int | str, Any]:
    return _errors(403, 500)


def _errors(*statuses: int) -> dict[int | str, Any]:
    content = {"application/json": {"schema": _ERROR_SCHEMA}}
    return {
        status: {
            "description": "As remove.bg has it.",
            "content": content,
            "headers": COMMON_HEADERS,
        }
        for status in statuses
    }
