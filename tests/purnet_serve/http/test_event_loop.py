"""The compiled loop and parser behave as asyncio and h11 do, and the service runs without them."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from fake_backend import WAIT_S
from live_service import Live, MakeLive
from photos import encoded, scene

from purnet_serve.http import event_loop, server

pytestmark = pytest.mark.anyio

PHOTO = encoded(scene())


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "h11":
        monkeypatch.setattr(server, "http_protocol", lambda: "h11")
    return str(request.param)


async def answer_to(live: Live, *pieces: bytes) -> bytes:
    """What is answered until the server closes the connection."""
    reader, writer = await live.connect()
    async with asyncio.timeout(WAIT_S):
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


def sized(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/mask HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.usefixtures("parser")
async def test_a_photo_gets_its_mask_and_the_connection_goes_on(make_live: MakeLive) -> None:
    live = await make_live()
    for _ in range(2):
        assert (await live.client.post("/v1/mask", content=PHOTO)).status_code == 200
    assert (await live.client.get("/livez")).json() == {"status": "alive"}


@pytest.mark.usefixtures("parser")
async def test_a_head_without_end_is_refused(make_live: MakeLive) -> None:
    live = await make_live()
    header = b"X-More: " + b"a" * 1000 + b"\r\n"
    for head in (
        [b"GET /livez HTTP/1.1\r\n", *[header] * 2000],
        [b"GET /livez HTTP/1.1\r\nX-Long: ", *[b"a" * 1000] * 2000],
        [b"GET /", *[b"a" * 1000] * 2000],
    ):
        answer = await answer_to(live, *head)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert (await live.client.get("/livez")).status_code == 200


@pytest.mark.usefixtures("parser")
async def test_headers_behind_a_body_are_bounded_too(make_live: MakeLive) -> None:
    live = await make_live()
    head = (
        b"POST /v1/mask HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n"
    )
    answer = await answer_to(live, head, *[b"X-More: " + b"a" * 1000 + b"\r\n"] * 2000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    await live.idle()


async def test_a_long_body_is_no_long_head(make_live: MakeLive) -> None:
    live = await make_live()
    body = PHOTO + bytes(4 * event_loop.MAX_HEAD_BYTES)
    assert (await live.client.post("/v1/mask", content=body)).status_code == 200
    reader, writer = await live.connect()
    for _ in range(3):  # kept alive, and each head is counted by itself
        writer.write(sized(body, "X-Long: " + "a" * (event_loop.MAX_HEAD_BYTES * 2 // 3)))
        async with asyncio.timeout(WAIT_S):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"IEND\xaeB`\x82")
    writer.transport.abort()


@pytest.mark.usefixtures("parser")
async def test_an_offer_to_speak_http_2_changes_nothing(make_live: MakeLive) -> None:
    live = await make_live()
    offer = "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
    request = sized(PHOTO, *offer)
    for cut in (len(request), len(request) - 9, len(request) - len(PHOTO), 40):
        reader, writer = await live.connect()
        try:
            for _ in range(2):
                writer.write(request[:cut])
                await writer.drain()
                writer.write(request[cut:])
                async with asyncio.timeout(WAIT_S):
                    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                    await reader.readuntil(b"IEND\xaeB`\x82")
        finally:
            writer.transport.abort()


def test_without_the_compiled_ones_there_are_asyncio_and_h11(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("uvloop", "httptools", "uvicorn.protocols.http.httptools_impl"):
        monkeypatch.setitem(sys.modules, name, None)
    assert event_loop.http_protocol() == "h11"
    loop = event_loop.new_event_loop()
    loop.close()
    assert type(loop).__module__.startswith("asyncio")


def test_the_clock_of_the_loop_has_more_than_milliseconds() -> None:
    loop = event_loop.new_event_loop()
    try:
        times = [loop.time() for _ in range(100)]
        assert times == sorted(times)
        assert len(set(times)) > 1, "it stands still"
        assert times[0] <= time.monotonic()
    finally:
        loop.close()
