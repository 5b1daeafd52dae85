"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from purnet_serve.errors import KeyMissingError, ParameterError, ServiceError

MEDIA_TYPE = "application/problem+json"
RETRY_STATUSES = (429, 503)
DEFAULT_RETRY_AFTER_S = 1
"""For errors raised behind the door, where nobody knows the setting."""


def problem_document(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The members of the problem document; those without a value are left out."""
    document = {
        "type": f"urn:purnet-serve:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "parameter": error.parameter if isinstance(error, ParameterError) else None,
        "limit": error.limit,
        "actual": error.actual,
    }
    return {name: value for name, value in document.items() if value is not None}


def problem(
    error: ServiceError, request_id: str, headers: dict[str, str] | None = None
) -> Response:
    """The response that tells a client of an error.

    It never asks to close the connection: a client in the middle of its upload would be reset and
    lose the answer. The server reads on and discards instead.
    """
    extra = {"Cache-Control": "no-store", **(headers or {})}
    if error.status in RETRY_STATUSES:
        extra["Retry-After"] = str(error.retry_after_s or DEFAULT_RETRY_AFTER_S)
    if isinstance(error, KeyMissingError):
        extra["WWW-Authenticate"] = "Bearer"
    body = json.dumps(problem_document(error, request_id), ensure_ascii=False).encode()
    return Response(body, error.status, extra, media_type=MEDIA_TYPE)
