"""Errors as RFC 9457 problem documents, in answers and in the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from purnet_serve.errors import (
    KeyMissingError,
    ParameterError,
    ServiceError,
    all_errors,
    description_of,
)
from purnet_serve.settings import Settings

MEDIA_TYPE = "application/problem+json"
NOTHING_HERE = "There is nothing at this path; see /docs."
RETRY_STATUSES = (429, 503)
EXAMPLE_ID = "3b8f0c9b5f0a4d6e9a55d1f5b0f7f3a2"
EXAMPLE_TRACE = f"00-{EXAMPLE_ID}-00f067aa0ba902b7-01"
_Bound = int | float | str | SkipJsonSchema[None]


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="Name of the kind of problem, a URN.")
    title: str
    status: int
    detail: str = Field(description="What was wrong, in a sentence.")
    code: str = Field(json_schema_extra={"enum": [kind.code for kind in all_errors()]})
    request_id: str = Field(description="As in `X-Request-Id`, and in the log.")
    parameter: str | SkipJsonSchema[None] = Field(None, description="The parameter that is bad.")
    limit: _Bound = Field(None, description="The bound that was exceeded.")
    actual: _Bound = Field(None, description="The value that exceeded it.")


def problem_document(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The members of the problem document; those without a value are left out."""
    members = {name: getattr(error, name, None) for name in Problem.model_fields}
    members |= {"type": f"urn:purnet-serve:problem:{error.code}", "request_id": request_id}
    return {name: value for name, value in members.items() if value is not None}


def problem(
    error: ServiceError,
    request_id: str,
    headers: dict[str, str] | None = None,
    retry_after_s: int = 1,
) -> Response:
    """The response for an error; `retry_after_s` is for those that do not bring their own.

    It never asks to close the connection: a client in the middle of its upload would be reset and
    lose the answer. The server reads on and discards instead, and so does the middleware where the
    client itself asks for the end of the connection.
    """
    extra = {"Cache-Control": "no-store", **(headers or {})}
    if error.status in RETRY_STATUSES:
        extra["Retry-After"] = str(error.retry_after_s or retry_after_s)
    if isinstance(error, KeyMissingError):
        extra["WWW-Authenticate"] = "Bearer"
    body = json.dumps(problem_document(error, request_id), ensure_ascii=False).encode()
    return Response(body, error.status, extra, media_type=MEDIA_TYPE)


# --- for the OpenAPI document


def openapi_header(description: str, example: str | int, **schema: Any) -> dict[str, Any]:
    """A header, as OpenAPI describes it; its type is that of the example."""
    kind = "integer" if isinstance(example, int) else "string"
    return {"description": description, "schema": {"type": kind, **schema}, "example": example}


COMMON_HEADERS = {
    "X-Request-Id": openapi_header(
        "The client's id, if it is plain and short, or ours.", EXAMPLE_ID
    ),
    "X-Content-Type-Options": openapi_header("The content is what its type says.", "nosniff"),
    "traceparent": openapi_header(
        "The client's trace, with an id of our part of it.", EXAMPLE_TRACE
    ),
}
"""Headers of every answer."""
_RETRY_AFTER = {"Retry-After": openapi_header("Seconds after which to come again.", 1)}


def responses_of(*codes: str, settings: Settings | None = None) -> dict[int | str, Any]:
    """Responses for errors, by status, with an example for each code.

    With `settings` the examples show the limits of this service.
    """
    responses: dict[int | str, Any] = {}
    for kind in (kind for kind in all_errors() if kind.code in codes):
        retry = _RETRY_AFTER if kind.status in RETRY_STATUSES else {}
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        empty = {"headers": COMMON_HEADERS | retry, "content": {MEDIA_TYPE: content}}
        response = responses.setdefault(kind.status, {"description": "", **empty})
        response["description"] = f"{response['description']} {description_of(kind)}".strip()
        example = problem_document(_example(kind, settings), EXAMPLE_ID)
        response["content"][MEDIA_TYPE]["examples"][kind.code] = {"value": example}
    return responses


def _example(kind: type[ServiceError], settings: Settings | None) -> ServiceError:
    if issubclass(kind, ParameterError):
        return kind("threshold", description_of(kind), actual="300")
    error = kind(description_of(kind))
    if settings is not None and kind.setting is not None:
        error.limit = getattr(settings, kind.setting)
    return error
