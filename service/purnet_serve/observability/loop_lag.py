"""How late the event loop runs: what a request feels when something blocks the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL_S = 0.25
"""Seconds between measurements; a blocked loop shows in the first one after it."""


class LoopLag:
    """Reports, a few times a second, by how many seconds the loop's timers are late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[float], None]) -> None:
        self._loop = loop
        self._report = report
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure."""
        due_s = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(due_s, self._measure, due_s)

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self, due_s: float) -> None:
        self._report(self._loop.time() - due_s)
        self.start()
