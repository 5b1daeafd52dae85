"""Threads for pixels: a few of them, and nothing queued that its owner has left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from purnet_serve.images.memory_budget import Room

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """At most `threads` calls at once, as far as `room` holds them; others wait on the event loop.

    An executor's own queue would keep the arguments of calls that were cancelled (uploads of
    clients long gone) until a thread comes round to them. Here a call reaches the executor only
    when a thread is free, and the thread and its room count as taken until the call has really
    ended, even if its caller was cancelled meanwhile: memory is bounded whoever leaves.
    """

    def __init__(self, threads: int, name: str, room: Room) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(threads)
        self._room = room

    async def run(self, size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call`, which takes `size` bytes, in a thread and return its result.

        Cancelling before it began undoes everything; later, it leaves a running call behind.
        """
        await self._free.acquire()
        try:
            share = await self._room.take(size)
        except BaseException:
            self._free.release()
            raise

        def ended() -> None:
            share.resize(0)
            self._free.release()

        try:
            future = self._executor.submit(call, *args, **kwargs)
        except BaseException:
            ended()
            raise
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended))
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Take no more calls and wait for those that run."""
        await asyncio.to_thread(self._executor.shutdown)
