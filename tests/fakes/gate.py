"""Holds a gated fake predictor at the beginning of each batch until the test lets it go."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

TIMEOUT_S = 30.0
"""A batch that has not come by then never will."""


class Gate:
    """The parent's end of the FIFOs that `fake_predictor.pass_gate` uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.mkfifo(folder / "entered")
        os.mkfifo(folder / "leave")
        # Open for both ways, so that neither opening waits for the worker.
        self._entered = os.open(folder / "entered", os.O_RDWR | os.O_NONBLOCK)
        self._leave = os.open(folder / "leave", os.O_RDWR | os.O_NONBLOCK)
        self._buffer = b""

    async def entered(self) -> list[int]:
        """Wait for the next batch; returns the numbers of its images."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT_S):
            while b"\n" not in self._buffer:
                readable = asyncio.Event()
                loop.add_reader(self._entered, readable.set)
                try:
                    await readable.wait()
                finally:
                    loop.remove_reader(self._entered)
                self._buffer += os.read(self._entered, 65536)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return list(json.loads(line))

    def leave(self, batches: int = 1) -> None:
        """Let as many batches go on, now or when they come."""
        os.write(self._leave, b"." * batches)

    def close(self) -> None:
        os.close(self._entered)
        os.close(self._leave)
