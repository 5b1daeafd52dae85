from __future__ import annotations

import json
import logging
import sys

import pytest
from photos import encoded, scene
from service_process import fake_service

from purnet_serve.observability.logging import JsonFormatter, TextFormatter

KEY = "a-secret-key"
PHOTO = encoded(scene())


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("purnet_serve.access", logging.INFO, "f", 1, "request", None, None)
    made.__dict__.update(extra)
    return made


def test_a_record_is_one_line_of_json() -> None:
    line = JsonFormatter().format(record(request_id="a\nb", status=200, code=None))
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["event"], fields["request_id"], fields["status"]) == ("request", "a\nb", 200)
    assert "code" not in fields


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_error_is_logged_with_its_traceback(formatter: logging.Formatter) -> None:
    made = record()
    try:
        raise RuntimeError("what happened")
    except RuntimeError:
        made.exc_info = sys.exc_info()
    assert "what happened" in formatter.format(made)


def test_text_leaves_out_what_has_no_value() -> None:
    assert TextFormatter().format(record(status=200, code=None)) == "info    request status=200"


def test_requests_are_logged_with_ids_and_timings_and_nothing_private() -> None:
    import httpx

    with fake_service() as (service, url), httpx.Client(trust_env=False) as client:
        client.post(
            f"{url}/v1/mask?output=cutout",
            files={"image": ("holiday-with-anna.png", PHOTO)},
            headers={"X-Api-Key": KEY, "Authorization": f"Bearer {KEY}", "X-Request-Id": "id-1"},
        )
        client.get(f"{url}/private-path?q=private-query", headers={"X-Request-Id": "id-2"})
        for wanted in ("id-1", "id-2"):
            service.await_line(wanted, service.errors)
        first, second = (
            next(line for line in service.logs if line.get("request_id") == wanted)
            for wanted in ("id-1", "id-2")
        )
        everything = "\n".join(service.errors)
    assert first["status"] == 200
    assert (first["route"], first["width"], first["height"]) == ("/v1/mask", 96, 64)
    assert set(first["timings_ms"]) == {"receive", "decode", "queue", "infer", "encode", "send"}
    assert (second["status"], second["route"], second["code"]) == (404, "other", "not_found")
    for private in (KEY, "anna", "private"):
        assert private not in everything
