"""An event loop whose clock stands still until a test moves it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

TURNS = 10_000
"""More turns of the loop than anything here takes to come to rest."""


class FakeClockLoop(asyncio.SelectorEventLoop):
    """Timers fire in order and exactly on time, when `advance` gets there."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()
        self._raised: list[BaseException] = []
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run callbacks until none is left that is due now."""
        for _ in range(TURNS):
            self.call_soon(self.stop)
            self.run_forever()
            if self._raised:
                raise self._raised.pop()
            due = self._next_timer_s()
            if not self._ready and (due is None or due > self.now):
                return
        raise AssertionError("the loop does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at every timer on the way."""
        until = self.now + seconds
        self.settle()
        while (due := self._next_timer_s()) is not None and due <= until:
            self.now = max(self.now, due)
            self.settle()
        self.now = until
        self.settle()

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task and let it run as far as it gets."""
        task = self.create_task(work)
        self.settle()
        return task

    def finish(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine that needs no time to pass."""
        task = self.begin(work)
        if not task.done():
            task.cancel()
            self.settle()
            raise AssertionError("it waits for something that does not come")
        return task.result()

    @property
    def timers(self) -> int:
        """Timers that are still to fire."""
        return sum(not timer.cancelled() for timer in self._scheduled)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback raises, an assertion too, is raised by the `settle` it runs in."""
        if "handle" in context and "exception" in context:
            self._raised.append(context["exception"])
        else:
            loop.default_exception_handler(context)

    def _next_timer_s(self) -> float | None:
        return min((t.when() for t in self._scheduled if not t.cancelled()), default=None)
