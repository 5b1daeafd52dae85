"""Answers given before the upload has arrived, on connections that close after them.

A server that closes a connection with unread input resets it, and the answer is lost.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import requests
from fake_backend import WAIT_S
from live_service import Live, MakeLive
from tests.conftest import Require

from purnet_serve.http import middleware
from purnet_serve.settings import MIB

pytestmark = pytest.mark.anyio

Headers = dict[str, str]
Ask = Callable[[str, bytes, Headers], dict[str, Any]]
"""Posts a body to a URL and returns the problem document of the answer."""


def by_urllib(url: str, body: bytes, headers: Headers) -> dict[str, Any]:
    request = urllib.request.Request(url, body, headers)  # always sends `Connection: close`
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=WAIT_S)
    with refused.value as answer:
        return dict(json.loads(answer.read()))


def by_http_client(url: str, body: bytes, headers: Headers) -> dict[str, Any]:
    host, path = url.removeprefix("http://").split("/", 1)
    connection = http.client.HTTPConnection(host, timeout=WAIT_S)
    try:
        connection.request("POST", f"/{path}", body, {**headers, "Connection": "close"})
        return dict(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def by_requests(url: str, body: bytes, headers: Headers) -> dict[str, Any]:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(
            url, data=body, headers={**headers, "Connection": "close"}, timeout=WAIT_S
        )
        return dict(answer.json())


def by_curl(*more: str) -> Ask:
    def ask(url: str, body: bytes, headers: Headers) -> dict[str, Any]:
        curl = shutil.which("curl")
        assert curl
        given = [f"-H{name}: {value}" for name, value in {**headers, "Expect": ""}.items()]
        command = [curl, "-sS", "--noproxy", "*", *more, *given, "--data-binary", "@-", url]
        done = subprocess.run(command, input=body, capture_output=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return ask


def by_socket(version: str) -> Ask:
    """Sends everything, and only then reads, up to the end of the connection."""

    def ask(url: str, body: bytes, headers: Headers) -> dict[str, Any]:
        address, path = url.removeprefix("http://").split("/", 1)
        host, port = address.split(":")
        fields = {"Host": address, "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"{name}: {value}" for name, value in {**fields, **headers}.items()]
        head = "\r\n".join([f"POST /{path} HTTP/{version}", *lines, "", ""])
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as sock:
            sock.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))

    return ask


CLIENTS: dict[str, Ask] = {
    "urllib": by_urllib,
    "http.client": by_http_client,
    "requests": by_requests,
    "curl": by_curl("-HConnection: close"),
    "curl, HTTP/1.0": by_curl("--http1.0"),
    "socket": by_socket("1.1"),
    "socket, HTTP/1.0": by_socket("1.0"),
}
REFUSALS: dict[str, tuple[str, Headers]] = {
    "bad_parameter": ("/v1/mask?threshold=x", {}),
    "not_found": ("/nowhere", {}),
    "unsupported_content_encoding": ("/v1/mask", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("mib", [1, 8, 25])
@pytest.mark.parametrize("client", CLIENTS)
async def test_every_client_reads_the_refusal(
    make_live: MakeLive, client: str, mib: int, require: Require
) -> None:
    if "curl" in client:
        require(shutil.which("curl"), "curl")
    ask, body = CLIENTS[client], bytes(mib * MIB)
    live, small = await make_live(), await make_live(max_body_bytes=1024)
    for code, (path, headers) in REFUSALS.items():
        answer = await asyncio.to_thread(ask, live.url + path, body, headers)
        assert answer["code"] == code
    answer = await asyncio.to_thread(ask, f"{small.url}/v1/mask", body, {})
    assert answer["code"] == "body_too_large"


async def refused(live: Live, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose upload has been refused, before its first byte was sent."""
    reader, writer = await live.connect()
    head = f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}"
    writer.write(f"{head}\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        assert b"body_too_large" in await reader.readuntil(b"}")
    return reader, writer


async def test_what_is_thrown_away_holds_no_place_and_ends_the_connection(
    make_live: MakeLive,
) -> None:
    live = await make_live(max_body_bytes=1024, max_requests_in_flight=1)
    reader, writer = await refused(live, 2 * MIB)
    assert (live.service.admission.requests, live.service.admission.bytes) == (0, 0)
    assert live.sample("purnet_errors_total", code="body_too_large") == 1
    writer.write(bytes(2 * MIB))
    async with asyncio.timeout(WAIT_S):
        await writer.drain()
        assert await reader.read() == b""
    writer.close()


async def test_a_client_that_sends_no_more_is_waited_for_a_short_time(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LINGER_IDLE_S", 0.05)
    reader, writer = await refused(await make_live(max_body_bytes=1024), 2 * MIB)
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(("name", "value"), [("LINGER_BYTES", 256 * 1024), ("LINGER_S", 0.2)])
async def test_a_client_that_sends_without_end_is_cut_off(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    monkeypatch.setattr(middleware, name, value)
    _, writer = await refused(await make_live(max_body_bytes=1024), 10**12)

    async def send() -> None:
        while True:
            writer.write(bytes(64 * 1024))
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send(), WAIT_S)
    writer.transport.abort()


async def test_a_server_that_ends_still_answers_those_that_are_uploading(
    make_live: MakeLive,
) -> None:
    live = await make_live(drain_s=0)
    reader, writer = await live.connect()
    head = f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}\r\n"
    writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        assert b"100 Continue" in await reader.readline()  # sent once the request was admitted
        live.server.stop()
        await reader.readuntil(b"}")  # nothing was sent, and the answer is there
        writer.write(bytes(8 * MIB))
        await writer.drain()
        assert await reader.read() == b""
        await live.running
    writer.close()
