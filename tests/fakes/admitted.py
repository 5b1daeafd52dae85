"""Requests that take a place in admission without a server around them."""

from __future__ import annotations

from starlette.datastructures import Headers

from purnet_serve.http.admission import Admission
from purnet_serve.http.request import RequestContext


def admit(admission: Admission, content_length: int | None) -> RequestContext:
    """Admit a new request, or raise why it is refused."""
    request = RequestContext("id", "POST", "/v1/mask", Headers(), arrived=0.0, deadline=1.0)
    admission.admit(request, content_length)
    return request
