from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from fake_backend import FakeBackend
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from service_process import fake_service

from purnet_serve.errors import all_errors
from purnet_serve.http.app import create_app
from purnet_serve.http.mask import ELSEWHERE
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings


def not_a_fault(ctx: Any, response: Any, case: Any) -> bool | None:
    """A case may ask for an answer within 100 ms, which a busy machine answers too late."""
    late = response.status_code == 504 and "X-Timeout-Ms" in (case.headers or {})
    return None if late else not_a_server_error(ctx, response, case)


CHECKS = [
    not_a_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings(), FakeBackend(), Metrics()).openapi()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service(PURNET_LOG_LEVEL="error") as (_, address):
        yield address


@pytest.fixture(scope="module")
def api(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/v1/mask", "POST", GenerationMode.POSITIVE),
        ("/v1/mask", "POST", GenerationMode.NEGATIVE),
        ("/api/remove", "POST", GenerationMode.POSITIVE),
        ("/api/remove", "POST", GenerationMode.NEGATIVE),
        ("/api/remove", "GET", GenerationMode.POSITIVE),
        ("/v1.0/removebg", "POST", GenerationMode.POSITIVE),
        # No NEGATIVE: schemathesis cannot check a body whose binary field is optional.
        ("/v1.0/account", "GET", GenerationMode.POSITIVE),
        ("/v1/models", "GET", GenerationMode.POSITIVE),
        ("/livez", "GET", GenerationMode.POSITIVE),
        ("/readyz", "GET", GenerationMode.POSITIVE),
        ("/metrics", "GET", GenerationMode.POSITIVE),
    ],
)
def test_requests_good_and_bad_are_answered_as_documented(
    api: Any, path: str, method: str, mode: GenerationMode
) -> None:
    operation = api[path][method]

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


def test_every_error_is_documented_where_it_can_happen(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/mask"]["post"]["responses"]
    for kind in all_errors():
        if kind.code in ELSEWHERE:
            continue
        content = responses[str(kind.status)]["content"]["application/problem+json"]
        example = content["examples"][kind.code]["value"]
        assert (example["status"], example["code"]) == (kind.status, kind.code)
        assert "X-Request-Id" in responses[str(kind.status)]["headers"]
    for status in ("429", "503"):
        assert "Retry-After" in responses[status]["headers"]


def test_body_parameters_and_headers_are_documented(document: dict[str, Any]) -> None:
    operation = document["paths"]["/v1/mask"]["post"]
    content = operation["requestBody"]["content"]
    assert {"multipart/form-data", "image/jpeg", "image/png", "image/webp"} <= set(content)
    names = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert set(names) == {
        "output", "size", "threshold", "format", "X-Timeout-Ms", "X-Request-Id", "X-Api-Key",
        "traceparent",
    }  # fmt: skip
    assert all("example" in names[name] for name in names if name.startswith("X-"))
    assert all(names[name]["schema"]["examples"] for name in ("output", "size", "threshold"))
    assert names["threshold"]["schema"].items() >= {"minimum": 0, "maximum": 255}.items()
    # To leave it out is not the same as to send any number, so there is no default.
    assert names["X-Timeout-Ms"]["schema"] == {"type": "integer", "minimum": 100, "maximum": 60_000}
    headers = operation["responses"]["200"]["headers"]
    assert {"X-Width", "X-Height", "X-Foreground-Box", "X-Model-Version", "Server-Timing"} <= set(
        headers
    )


def test_examples_show_this_service_s_own_limits() -> None:
    app = create_app(Settings(max_pixels=1234), FakeBackend(), Metrics())
    responses = app.openapi()["paths"]["/v1/mask"]["post"]["responses"]
    examples = responses["422"]["content"]["application/problem+json"]["examples"]
    assert examples["too_many_pixels"]["value"]["limit"] == 1234


def test_the_document_is_served_below_its_root_path() -> None:
    with (
        fake_service(PURNET_ROOT_PATH="/purnet", PURNET_LOG_LEVEL="error") as (_, address),
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        for path in ("/openapi.json", "/purnet/openapi.json"):
            assert client.get(path).json()["servers"] == [{"url": "/purnet"}]
        assert client.get("/purnet/livez").status_code == 200
