from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from fake_backend import WAIT_S

from purnet_serve.images.thread_pool import BoundedThreadPool, MemoryBudget

pytestmark = pytest.mark.anyio


class Job:
    """An argument whose end can be seen."""


async def test_results_and_errors_come_back() -> None:
    pool = BoundedThreadPool(2, "test", MemoryBudget(100))
    assert await pool.run(0, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(0, divmod, 1, 0)
    await pool.close()


async def test_no_more_calls_than_threads_even_when_callers_are_cancelled() -> None:
    pool = BoundedThreadPool(1, "test", MemoryBudget(100))
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
    pool = BoundedThreadPool(1, "test", MemoryBudget(100))
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


async def test_calls_wait_for_memory_and_release_it_when_they_end() -> None:
    budget = MemoryBudget(100)
    pool = BoundedThreadPool(3, "test", budget)
    entered, open_gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert open_gate.wait(WAIT_S)

    running = asyncio.create_task(pool.run(80, hold))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    running.cancel()
    await asyncio.wait({running})
    assert budget.reserved_bytes == 80, "its thread still runs"
    waiting = asyncio.create_task(pool.run(30, divmod, 7, 2))
    leaving = asyncio.create_task(pool.run(30, divmod, 7, 2))
    await asyncio.sleep(0)
    leaving.cancel()
    open_gate.set()
    assert await waiting == (3, 1)
    await asyncio.wait({leaving})
    await pool.close()
    assert budget.reserved_bytes == 0


async def _reserve(budget: MemoryBudget, size: int, order: list[int]) -> None:
    await budget.reserve(size)
    order.append(size)


async def test_reservations_are_granted_in_order_of_arrival() -> None:
    budget = MemoryBudget(100)
    order: list[int] = []
    first = await budget.reserve(80)
    big = asyncio.create_task(_reserve(budget, 50, order))
    small = asyncio.create_task(_reserve(budget, 10, order))
    await asyncio.sleep(0)
    assert order == [], "a small reservation may not overtake a large one"
    first.resize(50)
    await asyncio.gather(big, asyncio.sleep(0))
    assert (order, budget.reserved_bytes) == ([50], 100)
    first.resize(0)
    await small
    assert (order, budget.reserved_bytes) == ([50, 10], 60)


async def test_a_reservation_larger_than_the_budget_is_granted_alone() -> None:
    budget = MemoryBudget(100)
    small = await budget.reserve(1)
    huge = asyncio.create_task(budget.reserve(1000))
    await asyncio.sleep(0)
    assert not huge.done()
    small.resize(0)
    assert (await huge).bytes == budget.reserved_bytes == 1000


@pytest.mark.parametrize("granted", [False, True])
async def test_a_cancelled_wait_reserves_nothing(granted: bool) -> None:
    budget = MemoryBudget(100)
    first = await budget.reserve(100)
    waiting = asyncio.create_task(budget.reserve(60))
    behind = asyncio.create_task(budget.reserve(70))
    await asyncio.sleep(0)
    if granted:  # granted in the same step of the event loop in which it is cancelled
        first.resize(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not granted:
        first.resize(0)
    assert (await behind).bytes == budget.reserved_bytes == 70


async def test_a_measured_call_has_its_memory_before_it_begins() -> None:
    budget = MemoryBudget(100)
    pool = BoundedThreadPool(2, "test", budget)
    threads: list[int] = []

    def measure() -> int:
        threads.append(threading.get_ident())
        return 60

    def call(measured: int) -> int:
        threads.append(threading.get_ident())
        return budget.reserved_bytes - measured

    assert await pool.run_measured(measure, lambda measured: measured, call) == 0
    assert len(set(threads)) == 1
    with pytest.raises(ZeroDivisionError):
        await pool.run_measured(measure, lambda measured: measured, lambda _: 1 // 0)
    await pool.close()
    assert budget.reserved_bytes == 0


async def test_a_measured_call_waits_for_memory_and_is_measured_once() -> None:
    budget = MemoryBudget(100)
    pool = BoundedThreadPool(2, "test", budget)
    entered, open_gate, measured = threading.Event(), threading.Event(), threading.Semaphore(0)
    called: list[int] = []

    def hold() -> None:
        entered.set()
        assert open_gate.wait(WAIT_S)

    def measure() -> int:
        measured.release()
        return 30

    def call(size_bytes: int) -> int:
        called.append(budget.reserved_bytes)
        return size_bytes

    running = asyncio.create_task(pool.run(80, hold))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    waiting = asyncio.create_task(pool.run_measured(measure, lambda size: size, call))
    leaving = asyncio.create_task(pool.run_measured(measure, lambda size: size, call))
    for _ in range(2):
        assert await asyncio.to_thread(measured.acquire, timeout=WAIT_S)
    assert called == []
    leaving.cancel()
    await asyncio.wait({leaving})
    open_gate.set()
    await running
    assert await waiting == 30
    await pool.close()
    assert not measured.acquire(blocking=False)
    assert (called, budget.reserved_bytes) == ([30], 0)
