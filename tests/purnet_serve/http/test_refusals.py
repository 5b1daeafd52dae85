"""Refusals of large uploads, as real clients see them over real sockets."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from fake_backend import WAIT_S, FakeBackend
from live_service import Live, MakeLive
from photos import encoded, scene
from tests.conftest import Require

pytestmark = pytest.mark.anyio

BIG = 20 * 1024 * 1024
PHOTO = encoded(scene())


@pytest.fixture(params=["not_ready", "body_too_large"])
async def refusing(request: pytest.FixtureRequest, make_live: MakeLive) -> tuple[Live, str]:
    if request.param == "body_too_large":
        return await make_live(max_body_bytes=1024), request.param
    backend = FakeBackend()
    live = await make_live(backend)
    backend.reason = "the model is loading"
    return live, request.param


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
async def test_curl_reads_the_refusal(
    refusing: tuple[Live, str], tmp_path: Path, expect: str, require: Require
) -> None:
    require(curl := shutil.which("curl"), "curl")
    live, code = refusing
    body = tmp_path / "big"
    body.write_bytes(bytes(BIG))
    process = await asyncio.create_subprocess_exec(
        str(curl), "-sS", "-H", expect, "--data-binary", f"@{body}", f"{live.url}/v1/mask",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert json.loads(out)["code"] == code, err
    assert live.sample("purnet_errors_total", code=code) == 1


async def test_httpx_reads_the_refusal(refusing: tuple[Live, str]) -> None:
    live, code = refusing
    answer = await live.client.post("/v1/mask", content=bytes(BIG))
    assert answer.json()["code"] == code


async def test_a_form_of_httpx_reads_the_refusal(refusing: tuple[Live, str]) -> None:
    live, code = refusing
    answer = await live.client.post("/v1/mask", files={"image": bytes(BIG)})
    assert answer.json()["code"] == code


async def test_a_raw_socket_that_sends_everything_first_reads_the_refusal(
    refusing: tuple[Live, str],
) -> None:
    live, code = refusing
    reader, writer = await live.connect()
    writer.write(f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: {BIG}\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        for _ in range(BIG // 65536):
            writer.write(bytes(65536))
            await writer.drain()
        answer = await reader.readuntil(b"}")
        assert code.encode() in answer
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"alive" in await reader.readuntil(b"alive")
    writer.transport.abort()


async def raw(live: Live, request: bytes) -> bytes:
    """What the server answers to exactly these bytes: its status line."""
    reader, writer = await live.connect()
    writer.write(request)
    async with asyncio.timeout(WAIT_S):
        answer = await reader.readline()
    writer.transport.abort()
    await live.idle()
    return answer


POST = b"POST /v1/mask HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: five\r\n\r\n",
        b"Content-Length: 5, 6\r\n\r\n",
    ],
)
async def test_wrong_or_contradicting_lengths_are_400(live: Live, head: bytes) -> None:
    assert b"400" in await raw(live, POST + head + b"hello")


async def test_no_length_is_an_empty_body(live: Live) -> None:
    assert b"400" in await raw(live, POST + b"\r\n")


async def test_chunks_are_counted_and_decoded(make_live: MakeLive) -> None:
    live = await make_live(max_body_bytes=64 * 1024)
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO), PHOTO)
    assert b"200" in await raw(live, chunked + whole)
    endless = b"10000\r\n" + bytes(65536) + b"\r\n"
    assert b"413" in await raw(live, chunked + endless * 2)
    assert b"400" in await raw(live, chunked + b"not a chunk size\r\n")


async def test_more_than_announced_is_the_next_request_not_the_image(live: Live) -> None:
    head = b"Content-Length: %d\r\n\r\n" % len(PHOTO)
    assert b"200" in await raw(live, POST + head + PHOTO + b"GET /livez HTTP/1.1\r\nHost: x\r\n")


async def test_429_at_the_limit_and_200_afterwards(make_live: MakeLive) -> None:
    live = await make_live(max_requests_in_flight=2)
    live.backend.gate.clear()
    held = [asyncio.create_task(live.client.post("/v1/mask", content=PHOTO)) for _ in range(2)]
    for _ in held:
        await live.backend.one_arrived()
    refused = await live.client.post("/v1/mask", content=PHOTO)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (await live.client.get("/readyz")).json()["requests_in_flight"] == 2
    live.backend.gate.set()
    assert [(await answer).status_code for answer in held] == [200, 200]
    await live.idle()
    assert (await live.client.post("/v1/mask", content=PHOTO)).status_code == 200


async def test_cors_is_closed_by_default_and_lets_pages_read_refusals(
    make_live: MakeLive,
) -> None:
    origin = "https://page.example"
    closed = await (await make_live()).client.get("/livez", headers={"Origin": origin})
    assert "access-control-allow-origin" not in closed.headers
    live = await make_live(cors_origins=origin, max_body_bytes=10)
    refused = await live.client.post("/v1/mask", content=PHOTO, headers={"Origin": origin})
    assert refused.status_code == 413
    assert refused.headers["access-control-allow-origin"] == origin
    preflight = await live.client.options(
        "/v1/mask", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 200
    unknown = await live.client.options(
        "/v1/mask",
        headers={"Origin": "https://other.example", "Access-Control-Request-Method": "POST"},
    )
    assert (unknown.status_code, unknown.headers["content-type"][:10]) == (400, "text/plain")
    assert "x-request-id" not in unknown.headers
    other = await live.client.get("/livez", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_a_client_at_the_limit_may_ask_again_as_soon_as_it_is_answered(
    make_live: MakeLive,
) -> None:
    live = await make_live(max_requests_in_flight=1)
    for answered in range(50):
        assert (await live.client.post("/v1/mask", content=PHOTO)).status_code == 200
        count = live.sample("purnet_request_seconds_count", route="/v1/mask")
        assert count == answered + 1
