"""Clients that disconnect at every stage, held there by a gate: noticed, and nothing is kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fake_backend import WAIT_S
from live_service import Live, MakeLive
from photos import encoded, scene
from PIL import Image

from purnet_serve.images import codec

pytestmark = pytest.mark.anyio

PHOTO = encoded(scene())


class ThreadGate:
    """Holds a function that a pool thread runs."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.entered.set()
        if not self.open.wait(WAIT_S):
            raise AssertionError("the gate was never opened")
        return self._call(*args, **more)


@contextmanager
def gated(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[ThreadGate]:
    gate = ThreadGate(getattr(codec, name))
    monkeypatch.setattr(codec, name, gate)
    try:
        yield gate
    finally:
        gate.open.set()


async def post(live: Live, body: bytes) -> asyncio.StreamWriter:
    """Send a request over a connection of its own."""
    _, writer = await live.connect()
    head = f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return writer


async def hang_up(live: Live, writer: asyncio.StreamWriter, *, answer_bytes: int = 0) -> None:
    writer.transport.abort()
    await live.idle()
    held = live.service.admission.bytes, live.service.answer_memory.reserved_bytes
    assert held == (0, answer_bytes)


async def check_well(live: Live) -> None:
    """The next client is served as usual."""
    live.backend.gate.set()
    answer = await live.client.post("/v1/mask", content=PHOTO)
    assert answer.status_code == 200
    assert live.backend.upstream == 0


def gone(live: Live, stage: str) -> float:
    return live.sample("purnet_client_gone_total", stage=stage)


async def test_while_uploading(live: Live) -> None:
    reader, writer = await live.connect()
    head = f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO)}\r\n"
    writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        assert b"100 Continue" in await reader.readline()  # sent once the request was admitted
    assert live.service.admission.bytes == len(PHOTO)
    writer.write(PHOTO[:50])
    await writer.drain()
    await hang_up(live, writer)
    assert gone(live, "receive") == 1
    await check_well(live)


async def test_while_decoding(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, "decode") as gate:
        writer = await post(live, PHOTO)
        assert await asyncio.to_thread(gate.entered.wait, WAIT_S)
        await hang_up(live, writer)
        assert gone(live, "decode") == 1
        assert live.backend.seen == []
    await check_well(live)


async def test_while_waiting_for_a_decode_thread(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await make_live(decode_threads=1)
    with gated(monkeypatch, "decode") as gate:
        first = await post(live, PHOTO)
        assert await asyncio.to_thread(gate.entered.wait, WAIT_S)
        others = [await post(live, PHOTO) for _ in range(5)]
        for writer in (*others, first):
            writer.transport.abort()
        await live.idle()
        assert live.service.admission.bytes == 0
    await check_well(live)
    assert len(live.backend.seen) == 1, "an image of a client that had left was decoded"


async def test_while_queued_or_inferred(live: Live) -> None:
    live.backend.gate.clear()
    writer = await post(live, PHOTO)
    await live.backend.one_arrived()
    await hang_up(live, writer)
    assert (gone(live, "queue"), live.backend.cancelled) == (1, 1)
    await check_well(live)


async def test_while_encoding(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, "encode") as gate:
        writer = await post(live, PHOTO)
        assert await asyncio.to_thread(gate.entered.wait, WAIT_S)
        reserved = live.service.answer_memory.reserved_bytes
        assert reserved > 0
        await hang_up(live, writer, answer_bytes=reserved)  # the thread still fills it
        assert gone(live, "encode") == 1
    await check_well(live)
    await live.service.encode_pool.close()
    assert live.service.answer_memory.reserved_bytes == 0


def noise(side: int) -> bytes:
    """A photo whose cutout is larger than any socket's buffers."""
    samples = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(samples), "JPEG", quality=85)


async def ask_and_do_not_read(live: Live) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = noise(2200)
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port, limit=1024)
    head = "POST /v1/mask?output=cutout HTTP/1.1\r\nHost: x\r\nContent-Length: "
    writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    async with asyncio.timeout(WAIT_S):
        assert b"200" in await reader.readline()
    return reader, writer


async def test_while_the_answer_is_sent(live: Live) -> None:
    _, writer = await ask_and_do_not_read(live)
    assert live.service.answer_memory.reserved_bytes > 10_000_000
    await hang_up(live, writer)
    assert gone(live, "send") == 1
    await check_well(live)


async def test_a_client_that_never_reads_is_cut_off(make_live: MakeLive) -> None:
    live = await make_live(send_timeout_s=0.5)
    _, writer = await ask_and_do_not_read(live)
    await live.idle()
    assert gone(live, "send") == 1
    assert live.service.answer_memory.reserved_bytes == 0
    await check_well(live)
    writer.transport.abort()


async def test_a_client_that_never_sends_gets_408_and_may_go_on(make_live: MakeLive) -> None:
    live = await make_live(upload_timeout_s=0.1)
    reader, writer = await live.connect()
    writer.write(b"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nhal")
    async with asyncio.timeout(WAIT_S):
        answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"upload_timeout" in answer
    writer.write(b"f..GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        assert b"alive" in await reader.readuntil(b"alive")
    writer.transport.abort()


async def test_the_time_for_the_upload_ends_nothing_that_comes_after_it(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await make_live(upload_timeout_s=2.0)
    with gated(monkeypatch, "decode") as gate:
        asked = asyncio.create_task(live.client.post("/v1/mask", content=PHOTO))
        assert await asyncio.to_thread(gate.entered.wait, WAIT_S)
        (context,) = live.service.admission._admitted
        over = asyncio.Event()
        asyncio.get_running_loop().call_at(context.upload_deadline + 0.01, over.set)
        await over.wait()
        gate.open.set()
        assert (await asked).status_code == 200


@pytest.mark.parametrize("stage", ["decode", "encode"])
async def test_the_deadline_ends_what_a_thread_still_does(
    live: Live, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with gated(monkeypatch, stage) as gate:
        asked = asyncio.create_task(
            live.client.post("/v1/mask", content=PHOTO, headers={"X-Timeout-Ms": "2000"})
        )
        assert await asyncio.to_thread(gate.entered.wait, WAIT_S)
        answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline")
    assert answer.json()["detail"] == f"The request's 2.0 s were over at stage '{stage}'."
    await live.idle()
    await check_well(live)
