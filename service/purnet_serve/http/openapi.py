"""What the OpenAPI document says that signatures cannot: raw bodies, headers, every error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from purnet_serve.errors import ServiceError, tree, when
from purnet_serve.http.options import MAX_THRESHOLD, MIN_TIMEOUT_MS, OUTPUTS, SIZES, TIMEOUT_HEADER
from purnet_serve.http.problem_details import MEDIA_TYPE, RETRY_STATUSES
from purnet_serve.images.header import MAX_SCANS
from purnet_serve.settings import Settings

PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "description": "An error, as RFC 9457 has it.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "Name of the kind of problem, a URN."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, in a sentence."},
        "code": {"type": "string", "enum": [kind.code for kind in tree()]},
        "request_id": {"type": "string", "description": "As in `X-Request-Id`, and in the log."},
        "parameter": {"type": "string", "description": "The parameter that is meant."},
        "limit": {"type": ["number", "string"], "description": "The bound that was passed."},
        "actual": {"type": ["number", "string"], "description": "The value that passed it."},
    },
}
_PROBLEM_REF = {"$ref": "#/components/schemas/Problem"}
_EXAMPLE_ID = "3b8f0c9b5f0a4d6e9a55d1f5b0f7f3a2"

_LIMITS: dict[str, str] = {
    "body_too_large": "max_body_bytes",
    "too_many_pixels": "max_pixels",
    "side_too_long": "max_side",
    "too_many_requests": "max_requests_in_flight",
    "too_many_bytes": "max_bytes_in_flight",
    "upload_timeout": "upload_timeout_s",
    "deadline": "timeout_s",
}
"""Which setting is the `limit` of which error."""

_REQUEST_ID = {
    "X-Request-Id": {
        "description": "The id the client sent, when it is plain and short, or a new one.",
        "schema": {"type": "string"},
        "example": _EXAMPLE_ID,
    },
    "X-Content-Type-Options": {"schema": {"type": "string"}, "example": "nosniff"},
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to come again.",
        "schema": {"type": "integer"},
        "example": 1,
    }
}
_ANSWER_HEADERS: dict[str, Any] = {
    **_REQUEST_ID,
    "Cache-Control": {"schema": {"type": "string"}, "example": "no-store"},
    "X-Width": {
        "description": "Width of the photo as displayed, in pixels.",
        "schema": {"type": "integer"},
        "example": 4032,
    },
    "X-Height": {
        "description": "Height of the photo as displayed, in pixels.",
        "schema": {"type": "integer"},
        "example": 3024,
    },
    "X-Foreground-Box": {
        "description": "`left,top,right,bottom` of where the mask is 128 or more, in displayed "
        "pixels, right and bottom excluded; absent when there is no such place.",
        "schema": {"type": "string", "pattern": r"^\d+,\d+,\d+,\d+$"},
        "example": "812,430,3020,2711",
    },
    "X-Model-Version": {
        "description": "Variant and first digits of the sha256 of the weights that answered.",
        "schema": {"type": "string"},
        "example": "purnet-lite0@0123456789ab",
    },
    "Server-Timing": {
        "description": "Milliseconds for receive, decode, queue, infer and encode.",
        "schema": {"type": "string"},
        "example": "receive;dur=3.1, decode;dur=11.0, queue;dur=0.4, infer;dur=31.9",
    },
}


def error_responses(*codes: str, settings: Settings | None = None) -> dict[int | str, Any]:
    """OpenAPI responses for errors, by status, with an example for each code.

    `settings` lets the examples show this service's own limits.
    """
    kinds = {kind.code: kind for kind in tree()}
    responses: dict[int | str, Any] = {}
    for kind in sorted((kinds[code] for code in codes), key=lambda kind: kind.status):
        status = kind.status
        response = responses.setdefault(
            status,
            {
                "description": "",
                "headers": dict(_REQUEST_ID) | (_RETRY_AFTER if status in RETRY_STATUSES else {}),
                "content": {MEDIA_TYPE: {"schema": _PROBLEM_REF, "examples": {}}},
            },
        )
        response["description"] = " ".join([response["description"], when(kind)]).strip()
        response["content"][MEDIA_TYPE]["examples"][kind.code] = {"value": _example(kind, settings)}
    return responses


def mask_operation(settings: Settings) -> dict[str, Any]:
    """The operation object of `POST /v1/mask`."""
    photo = {"type": "string", "format": "binary", "description": "A JPEG, PNG or WebP image."}
    options = _options()
    form = {
        "type": "object",
        "required": ["image"],
        "description": "`file` and `image_file` are taken for `image` too.",
        "properties": {"image": photo, **{name: schema for name, _, schema in options}},
        "additionalProperties": False,
    }
    codes = [kind.code for kind in tree() if kind.code not in _NOT_OF_MASK]
    return {
        "operationId": "mask",
        "summary": "Find the salient object of a photo",
        "description": "Answers an 8-bit grey PNG of the photo's displayed size, 255 where the "
        "object is; with `output=cutout` the photo as RGBA with the mask as its alpha. "
        "Parameters may also be fields of the form, each given once.",
        "parameters": [*_query(options), *_request_headers(settings)],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                **{f"image/{kind}": {"schema": photo} for kind in ("jpeg", "png", "webp")},
                "application/octet-stream": {"schema": photo},
            },
        },
        "responses": {
            "200": {
                "description": "The mask or the cutout.",
                "headers": _ANSWER_HEADERS,
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            },
            **{
                str(status): response
                for status, response in error_responses(*codes, settings=settings).items()
            },
        },
    }


_NOT_OF_MASK = frozenset({"not_found", "method_not_allowed"})


def _options() -> Iterable[tuple[str, str, dict[str, Any]]]:
    return (
        (
            "output",
            "The mask alone, or the photo cut out by it.",
            {"type": "string", "enum": list(OUTPUTS), "default": OUTPUTS[0]},
        ),
        (
            "size",
            "The photo's displayed size, or the square the network sees.",
            {"type": "string", "enum": list(SIZES), "default": SIZES[0]},
        ),
        (
            "threshold",
            "Makes the mask 255 from this level up and 0 below; without it the mask is soft.",
            {"type": "integer", "minimum": 0, "maximum": MAX_THRESHOLD},
        ),
    )


def _query(options: Iterable[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    examples = {"output": "cutout", "size": "original", "threshold": 128}
    return [
        {
            "name": name,
            "in": "query",
            "description": description,
            "schema": schema,
            "example": examples[name],
        }
        for name, description, schema in options
    ]


def _request_headers(settings: Settings) -> list[dict[str, Any]]:
    most = int(settings.max_timeout_s * 1000)
    return [
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "description": "Milliseconds from the arrival of the request to its answer.",
            "schema": {
                "type": "integer",
                "minimum": MIN_TIMEOUT_MS,
                "maximum": most,
                "default": int(settings.timeout_s * 1000),
            },
            "example": 5000,
        },
        {
            "name": "X-Request-Id",
            "in": "header",
            "description": "An id of the client's own: up to 128 letters, digits, `.`, `_`, `:`, "
            "`-`. Another one is ignored.",
            "schema": {"type": "string"},
            "example": _EXAMPLE_ID,
        },
        {
            "name": "X-Api-Key",
            "in": "header",
            "description": "API key, where the service asks for one; `Authorization: Bearer` does "
            "as well.",
            "schema": {"type": "string"},
            "example": "an-api-key",
        },
    ]


def _example(kind: type[ServiceError], settings: Settings | None) -> dict[str, Any]:
    example: dict[str, Any] = {
        "type": f"urn:purnet-serve:problem:{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": when(kind),
        "code": kind.code,
        "request_id": _EXAMPLE_ID,
    }
    if kind.code == "bad_parameter":
        example |= {"parameter": "threshold", "actual": "300"}
    if kind.code == "too_many_scans":
        example["limit"] = MAX_SCANS
    if settings is not None and (setting := _LIMITS.get(kind.code)) is not None:
        example["limit"] = getattr(settings, setting)
    return example
