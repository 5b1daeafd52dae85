"""One way to call the client of threads and the client of asyncio, from a test on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from purnet_serve.client import AsyncPurNetClient, Outcome, PurNetClient

Sleep = Callable[[float], Awaitable[object]]


class Caller:
    """A client of one kind; `sleep` is awaited on the test's loop wherever the client waits."""

    def __init__(self, kind: str, url: str, sleep: Sleep | None = None, **options: Any) -> None:
        loop = asyncio.get_running_loop()

        def wait(seconds: float) -> None:
            assert sleep is not None
            asyncio.run_coroutine_threadsafe(_awaited(sleep, seconds), loop).result(30)

        if kind == "asyncio":
            slept = {} if sleep is None else {"sleep": sleep}
            self.client: Any = AsyncPurNetClient(url, **slept, **options)
        else:
            self.client = PurNetClient(url, **({} if sleep is None else {"sleep": wait}), **options)

    @property
    def is_async(self) -> bool:
        return isinstance(self.client, AsyncPurNetClient)

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        function = getattr(self.client, method)
        if self.is_async:
            return await function(*arguments, **options)
        return await asyncio.to_thread(function, *arguments, **options)

    async def many(self, photos: Any, **options: Any) -> list[Outcome]:
        outcomes = self.client.many(photos, **options)
        if self.is_async:
            return [outcome async for outcome in outcomes]
        return await asyncio.to_thread(list, outcomes)

    async def close(self) -> None:
        await self.call("close")


Call = Callable[..., Caller]
"""What the fixture `call` is: a `Caller` of a service's address and options."""


async def _awaited(sleep: Sleep, seconds: float) -> None:
    await sleep(seconds)
