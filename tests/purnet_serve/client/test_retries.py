"""When the clients ask again, and when they give up."""

from __future__ import annotations

import asyncio

import pytest
from both_clients import Call
from fake_backend import FakeBackend
from live_service import MakeLive
from photos import encoded, scene

from purnet_serve.client import BusyError, NoAnswerError, RetryPolicy

pytestmark = pytest.mark.anyio

EXACT = {"jitter": lambda: 1.0}
"""Waits no longer than they must be."""


async def test_a_busy_service_is_asked_again_after_what_it_says(
    make_live: MakeLive, call: Call
) -> None:
    live = await make_live(max_requests_in_flight=1, retry_after_s=7)
    live.backend.gate.clear()
    first = asyncio.create_task(live.client.post("/v1/mask", content=encoded(scene())))
    await live.backend.one_arrived()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        live.backend.gate.set()
        assert (await first).status_code == 200
        await live.idle()

    client = call(live.url, sleep=sleep, retries=RetryPolicy(**EXACT))
    assert (await client.call("mask", encoded(scene()))).width == 96
    assert waits == [7.0]


async def test_a_service_that_stays_busy_is_told_after_the_last_retry(
    make_live: MakeLive, call: Call
) -> None:
    backend = FakeBackend()
    live = await make_live(backend)
    backend.reason = "the model is being loaded"
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    client = call(live.url, sleep=sleep, retries=RetryPolicy(retries=3, first_wait_s=0.25, **EXACT))
    with pytest.raises(BusyError, match="the model is being loaded") as raised:
        await client.call("mask", encoded(scene()))
    assert (raised.value.status, raised.value.code) == (503, "not_ready")
    assert waits == [1.0, 1.0, 1.0]


async def test_a_connection_that_breaks_is_made_again(make_live: MakeLive, call: Call) -> None:
    """The first attempt is hung up on, the second reaches nothing, the third a service."""
    taken: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.read(1))
        writer.close()

    rude = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = rude.sockets[0].getsockname()[1]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            rude.close()
            await rude.wait_closed()
        else:
            await make_live(port=port)

    client = call(f"http://127.0.0.1:{port}", sleep=sleep, retries=RetryPolicy(**EXACT))
    assert (await client.call("mask", encoded(scene()))).width == 96
    assert taken == [b"P"]
    assert waits == [0.25, 0.5]


async def test_nothing_there_is_told_after_the_last_retry(call: Call) -> None:
    async def sleep(_: float) -> None:
        """No time passes."""

    client = call("http://127.0.0.1:9", sleep=sleep, retries=RetryPolicy(retries=1))
    with pytest.raises(NoAnswerError) as raised:
        await client.call("mask", b"photo")
    assert (raised.value.code, raised.value.status) == ("no_answer", None)
