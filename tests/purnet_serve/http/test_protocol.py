"""What HTTP allows and some client does: HEAD, whole URLs as targets, negotiated metrics."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from fake_backend import WAIT_S
from live_service import Live, MakeLive
from photos import encoded, scene
from prometheus_client.openmetrics.parser import text_string_to_metric_families

pytestmark = pytest.mark.anyio

PHOTO = encoded(scene())


async def raw(live: Live, request: str, body: bytes = b"") -> bytes:
    """All that the server answers before it closes the connection, as the request asks."""
    reader, writer = await live.connect()
    writer.write(f"{request}\r\nHost: x\r\nConnection: close\r\n\r\n".encode() + body)
    async with asyncio.timeout(WAIT_S):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/v1/models", "/metrics", "/docs", "/openapi.json"]
)
async def test_head_is_get_without_the_body(live: Live, path: str) -> None:
    got = await live.client.get(path)
    head, _, body = (await raw(live, f"HEAD {path} HTTP/1.1")).partition(b"\r\n\r\n")
    assert (got.status_code, head.split(b"\r\n")[0], body) == (200, b"HTTP/1.1 200 OK", b"")
    assert b"content-type: " + got.headers["content-type"].encode() in head
    if path != "/metrics":  # which has changed in between
        assert b"content-length: %d" % len(got.content) in head
    headers = (await live.client.head(path)).headers
    assert headers["x-request-id"]


async def test_head_of_what_is_not_there_has_no_body_either(live: Live) -> None:
    for path, status in (("/nowhere", b"404"), ("/v1/mask", b"405")):
        answer = await raw(live, f"HEAD {path} HTTP/1.1")
        assert answer.split(b" ")[1] == status
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("root", ["", "/purnet"])
@pytest.mark.parametrize("authority", ["http://x", "HTTP://x:8000", "https://user@x"])
async def test_a_whole_url_is_a_target(make_live: MakeLive, root: str, authority: str) -> None:
    live = await make_live(root_path=root, page=False)
    length = f"Content-Length: {len(PHOTO)}"
    target = f"{authority}{root}/v1/mask?size=model"
    answer = await raw(live, f"POST {target} HTTP/1.1\r\n{length}", PHOTO)
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
    assert live.sample("purnet_requests_total", route="/v1/mask", method="POST", status="200") == 1
    assert b"404" in (await raw(live, f"GET {authority} HTTP/1.1")).split(b"\r\n")[0]


async def test_a_whole_url_needs_a_key_as_the_path_does(
    make_live: MakeLive, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("0" * 64)
    live = await make_live(api_keys_file=file)
    for target in ("http://x/v1/models", "http://x/v1/models/", "/v1/models/"):
        assert b"401" in (await raw(live, f"GET {target} HTTP/1.1")).split(b"\r\n")[0]


@pytest.mark.parametrize("character", ["%0A", "%0a/", "%00", "%1F", "%7F", "%0D%0A"])
async def test_a_path_with_a_control_character_runs_no_route(
    make_live: MakeLive, tmp_path: Path, character: str
) -> None:
    file = tmp_path / "keys"
    file.write_text("0" * 64)
    live = await make_live(api_keys_file=file)
    length = f"Content-Length: {len(PHOTO)}"
    for method, path in sorted(live.service.photo_routes):
        answer = await raw(live, f"{method} {path}{character} HTTP/1.1\r\n{length}", PHOTO)
        assert answer.startswith(b"HTTP/1.1 404"), (method, path, answer)
    assert live.backend.seen == []


@pytest.mark.parametrize("root", ["", "/purnet"])
async def test_a_slash_at_the_end_is_ignored(make_live: MakeLive, root: str) -> None:
    live = await make_live(root_path=root, page=False)
    for path in ("/v1/mask/", f"{root}/v1/mask/"):
        assert (await live.client.post(path, content=PHOTO)).status_code == 200
    assert (await live.client.get("/livez/")).json() == {"status": "alive"}
    assert (await live.client.get("/livez//")).status_code == 404
    assert (await live.client.get("/")).status_code == 404


async def test_405_names_the_methods(live: Live) -> None:
    for ask, allow, detail in (
        (live.client.get("/v1/mask"), "POST", "This path takes POST."),
        (live.client.post("/livez"), "GET, HEAD", "This path takes GET or HEAD."),
        (live.client.put("/api/remove"), "GET, HEAD, POST", "This path takes GET or HEAD or POST."),
        (live.client.post("/docs"), "GET, HEAD", "This path takes GET or HEAD."),
    ):
        answer = await ask
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        assert answer.json()["detail"] == detail


async def test_a_half_closed_request_counts_as_abandoned(live: Live) -> None:
    live.backend.gate.clear()
    reader, writer = await live.connect()
    head = f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
    writer.write(head.encode() + PHOTO)
    await live.backend.one_arrived()
    writer.write_eof()
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    await live.idle()
    assert live.sample("purnet_client_gone_total", stage="queue") == 1
    writer.close()


async def test_metrics_are_openmetrics_where_that_is_asked_for(live: Live) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    answer = await live.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"purnet_requests", "purnet_request_seconds", "purnet_ready"} <= families
    for other in ("*/*", "text/plain", "application/openmetrics-text;version=new"):
        plain = await live.client.get("/metrics", headers={"Accept": other})
        assert plain.headers["content-type"].startswith("text/plain; version=")


async def test_metrics_are_compressed_where_that_is_asked_for(live: Live) -> None:
    for encoding, compressed in (("gzip", True), ("identity", False)):
        headers = {"Accept-Encoding": encoding}
        async with live.client.stream("GET", "/metrics", headers=headers) as answer:
            page = b"".join([part async for part in answer.aiter_raw()])
        assert (answer.headers.get("content-encoding") == "gzip") is compressed
        assert b"purnet_requests_total" in (gzip.decompress(page) if compressed else page)
        assert "Accept-Encoding" in answer.headers["vary"]
