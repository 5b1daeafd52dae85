from __future__ import annotations

import random

import pytest
from admitted import admit
from live_service import Live
from photos import encoded, scene
from prometheus_client.parser import text_string_to_metric_families

from purnet_serve.errors import all_errors
from purnet_serve.observability.labels import Stage

pytestmark = pytest.mark.anyio

PHOTO = encoded(scene())


async def series(live: Live) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    text = (await live.client.get("/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_series_is_there_before_the_first_request(live: Live) -> None:
    before = await series(live)
    for kind in all_errors():
        assert ("purnet_errors_total", (("code", kind.code),)) in before
    for stage in Stage:
        assert ("purnet_stage_seconds_count", (("stage", stage),)) in before
        assert ("purnet_client_gone_total", (("stage", stage),)) in before
    for body in (PHOTO, b"", b"text", PHOTO[:100], PHOTO):
        await live.client.post("/v1/mask", content=body)
    await live.client.get("/v1/mask")
    await live.client.request("BREW", "/v1/mask")
    assert await series(live) == before


async def test_a_thousand_random_paths_make_no_series(live: Live) -> None:
    before = await series(live)
    dice = random.Random(4)
    reader, writer = await live.connect()
    letters = "abcdefghijklmnopqrstuvwxyz/._-%20"
    for start in range(0, 1_000, 100):
        for _ in range(start, start + 100):
            path = "-" + "".join(dice.choices(letters, k=dice.randint(1, 30)))  # never "/"
            method = dice.choice(["GET", "POST", "PUT", "BREW", "HEAD"])
            head = f"{method} /{path} HTTP/1.1\r\nHost: {path}.example\r\nX-Request-Id: {path}\r\n"
            writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            if method != "HEAD":
                await reader.readexactly(length)
    writer.transport.abort()
    assert await series(live) == before
    others = sum(
        live.metrics.registry.get_sample_value(
            "purnet_requests_total", {"route": "other", "method": "other", "status": status}
        )
        or 0
        for status in ("400", "401", "404", "405")
    )
    assert others == 1_000


async def test_a_request_is_counted_once_under_its_labels(live: Live) -> None:
    await live.client.post("/v1/mask", content=PHOTO)
    await live.client.post("/v1/mask", content=b"text")
    await live.idle()
    route = {"route": "/v1/mask", "method": "POST"}
    assert live.sample("purnet_requests_total", **route, status="200") == 1
    assert live.sample("purnet_requests_total", **route, status="415") == 1
    assert live.sample("purnet_errors_total", code="unsupported_media") == 1
    assert live.sample("purnet_request_seconds_count", route="/v1/mask") == 1, "200 alone"
    assert live.sample("purnet_stage_seconds_count", stage="receive") == 2
    for part in ("decode", "queue", "infer", "encode"):
        assert live.sample("purnet_stage_seconds_count", stage=part) == 1
    assert live.sample("purnet_body_bytes_sum") == len(PHOTO) + 4
    assert live.sample("purnet_image_megapixels_sum") == pytest.approx(96 * 64 / 1e6)


async def test_only_what_was_encoded_is_timed_as_it_is_sent(live: Live) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/", "/v1/models", "/nowhere"):
        await live.client.get(path)
    await live.client.post("/v1/mask", content=b"text")
    assert live.sample("purnet_stage_seconds_count", stage="send") == 0
    await live.client.post("/v1/mask", content=PHOTO)
    await live.idle()
    assert live.sample("purnet_stage_seconds_count", stage="send") == 1


async def test_probes_are_told_why_and_no_error_is_counted(live: Live) -> None:
    live.backend.reason = "the model is loading"
    assert (await live.client.get("/readyz")).json()["code"] == "not_ready"
    assert live.sample("purnet_errors_total", code="not_ready") == 0
    refused = await live.client.post("/v1/mask", content=PHOTO)
    assert refused.json()["code"] == "not_ready"
    assert live.sample("purnet_errors_total", code="not_ready") == 1


async def test_gauges_follow_what_is_in_flight(live: Live) -> None:
    request = admit(live.service.admission, 100)
    assert live.sample("purnet_requests_in_flight") == 1
    assert live.sample("purnet_bytes_in_flight") == 100
    live.service.admission.release(request)
    assert live.sample("purnet_bytes_in_flight") == 0
