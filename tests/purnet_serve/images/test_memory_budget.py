from __future__ import annotations

import asyncio

import pytest

from purnet_serve.images.memory_budget import Room

pytestmark = pytest.mark.anyio


async def _take(room: Room, size: int, order: list[int]) -> None:
    await room.take(size)
    order.append(size)


async def test_answers_wait_in_order_for_room() -> None:
    room = Room(100)
    order: list[int] = []
    first = await room.take(80)
    big = asyncio.create_task(_take(room, 50, order))
    small = asyncio.create_task(_take(room, 10, order))
    await asyncio.sleep(0)
    assert order == [], "a small answer may not pass a big one for ever"
    first.resize(50)
    await asyncio.gather(big, asyncio.sleep(0))
    assert (order, room.bytes) == ([50], 100)
    first.resize(0)
    await small
    assert (order, room.bytes) == ([50, 10], 60)


async def test_one_answer_larger_than_all_the_room_goes_alone() -> None:
    room = Room(100)
    small = await room.take(1)
    huge = asyncio.create_task(room.take(1000))
    await asyncio.sleep(0)
    assert not huge.done()
    small.resize(0)
    assert (await huge).bytes == room.bytes == 1000


@pytest.mark.parametrize("woken", [False, True])
async def test_a_cancelled_wait_takes_nothing(woken: bool) -> None:
    room = Room(100)
    first = await room.take(100)
    waiting = asyncio.create_task(room.take(60))
    behind = asyncio.create_task(room.take(70))
    await asyncio.sleep(0)
    if woken:  # room was given in the very moment it was cancelled
        first.resize(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not woken:
        first.resize(0)
    assert (await behind).bytes == room.bytes == 70
