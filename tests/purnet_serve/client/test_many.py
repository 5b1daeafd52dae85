"""Many photos at once, by both clients against the real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from both_clients import Call
from fake_backend import WAIT_S
from live_service import Live
from photos import encoded, scene

from purnet_serve.client import AsyncPurNetClient, PhotoError, PurNetClient, RetryPolicy
from purnet_serve.client.clients import READAHEAD_FACTOR

pytestmark = pytest.mark.anyio


async def test_many_come_in_order_each_with_its_mask_or_its_error(
    live: Live, call: Call, tmp_path: Path
) -> None:
    photos: list[Any] = [encoded(scene(20 + n, 10)) for n in range(12)]
    photos[3], photos[7] = b"text", tmp_path / "none.jpg"
    heard: list[tuple[int, int | None]] = []
    outcomes = await call(live.url).many(
        photos,
        concurrency=3,
        output="cutout",
        progress=lambda *told: heard.append(told),
        size="model",
    )
    assert [outcome.photo for outcome in outcomes] == photos
    for number, outcome in enumerate(outcomes):
        if number in (3, 7):
            assert (outcome.result, type(outcome.error)) == (None, PhotoError)
        else:
            assert outcome.result is not None
            assert (outcome.result.width, outcome.error) == (20 + number, None)
            assert outcome.result.image().size == (32, 32)
            assert outcome.result.image().mode == "RGBA"
    assert heard == [(number, 12) for number in range(1, 13)]


async def test_only_so_many_are_sent_at_a_time_and_read_ahead(live: Live, call: Call) -> None:
    live.backend.gate.clear()
    read: list[int] = []

    def photos() -> Iterator[bytes]:
        for number in range(20):
            read.append(number)
            yield encoded(scene(20 + number, 10))

    heard: list[tuple[int, int | None]] = []
    sending = asyncio.create_task(
        call(live.url).many(photos(), concurrency=2, progress=lambda *told: heard.append(told))
    )
    for _ in range(2):
        await live.backend.one_arrived()
    assert live.service.admission.requests == 2
    assert len(read) <= READAHEAD_FACTOR * 2
    live.backend.gate.set()
    async with asyncio.timeout(WAIT_S):
        outcomes = await sending
    assert [outcome.result.width for outcome in outcomes if outcome.result] == [*range(20, 40)]
    assert heard[-1] == (20, None)


async def test_leaving_many_early_leaves_nothing_behind(live: Live) -> None:
    async with AsyncPurNetClient(live.url) as client:
        before = asyncio.all_tasks()
        outcomes: Any = client.many([encoded(scene())] * 20, concurrency=2)
        async for _ in outcomes:
            break
        await outcomes.aclose()
        left = asyncio.all_tasks() - before
        # Those of the service, which runs on this loop too, may be at their end.
        assert not [task for task in left if "purnet_serve/client" in str(task.get_coro())]

    def leave() -> None:
        with PurNetClient(live.url) as client:
            for _ in client.many([encoded(scene())] * 20, concurrency=2):
                break

    await asyncio.to_thread(leave)
    await live.idle()
    assert len(live.backend.seen) <= 2 * (1 + READAHEAD_FACTOR * 2)


def test_leaving_many_ends_the_waits_of_its_retries() -> None:
    """The first photo cannot be read; the second finds no service, and would wait for minutes."""
    waits = RetryPolicy(timeout_s=300, first_wait_s=60, longest_wait_s=60)

    def leave() -> None:
        with PurNetClient("http://127.0.0.1:9", retries=waits) as client:
            outcomes = client.many(["missing.jpg", b"photo"], concurrency=2)
            assert next(outcomes).error is not None
            outcomes.close()  # returns when its threads have ended

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
