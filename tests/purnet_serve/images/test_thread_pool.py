from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from fake_backend import WAIT_S

from purnet_serve.images.memory_budget import Room
from purnet_serve.images.thread_pool import Pool

pytestmark = pytest.mark.anyio


class Job:
    """An argument whose end can be seen."""


async def test_results_and_errors_come_back() -> None:
    pool = Pool(2, "test", Room(100))
    assert await pool.run(0, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(0, divmod, 1, 0)
    await pool.close()


async def test_no_more_calls_than_threads_even_when_callers_leave() -> None:
    pool = Pool(1, "test", Room(100))
    entered, open_gate, most, now = threading.Event(), threading.Event(), [0], [0]

    def call() -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        entered.set()
        assert open_gate.wait(WAIT_S)
        now[0] -= 1

    abandoned = asyncio.create_task(pool.run(0, call))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    others = [asyncio.create_task(pool.run(0, call)) for _ in range(3)]
    open_gate.set()
    await asyncio.gather(*others)
    assert most == [1]
    await pool.close()


async def test_a_call_cancelled_in_the_queue_leaves_nothing_behind() -> None:
    pool = Pool(1, "test", Room(100))
    entered, open_gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert open_gate.wait(WAIT_S)

    running = asyncio.create_task(pool.run(0, hold))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    job = Job()
    seen = weakref.ref(job)
    queued = asyncio.create_task(pool.run(0, id, job))
    await asyncio.sleep(0)
    queued.cancel()
    await asyncio.wait({queued})
    del job, queued
    gc.collect()
    left = seen()
    open_gate.set()
    await running
    assert left is None
    await pool.close()


async def test_calls_wait_for_room_and_give_it_back_when_they_end() -> None:
    room = Room(100)
    pool = Pool(3, "test", room)
    entered, open_gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert open_gate.wait(WAIT_S)

    running = asyncio.create_task(pool.run(80, hold))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    running.cancel()
    await asyncio.wait({running})
    assert room.bytes == 80, "its thread is still at work"
    waiting = asyncio.create_task(pool.run(30, divmod, 7, 2))
    leaving = asyncio.create_task(pool.run(30, divmod, 7, 2))
    await asyncio.sleep(0)
    leaving.cancel()
    open_gate.set()
    assert await waiting == (3, 1)
    await asyncio.wait({leaving})
    await pool.close()
    assert room.bytes == 0
