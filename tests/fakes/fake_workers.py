"""Workers without processes: the real protocol, memory and worker loop, stepped by the test."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable

from purnet_serve.inference.protocol import EngineFailed, LoadFailed, Run, decode, encode
from purnet_serve.inference.spawn import WorkerConnection
from purnet_serve.inference.worker_main import WorkerLoop


class FakeProcess:
    """A worker that does nothing until `step`, and can be stopped or killed at any time."""

    def __init__(self, pid: int, segment_fd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stopped = False
        self.unkillable = False
        """Signals have no effect, as for a process stuck in a driver."""
        self.inbox: deque[bytes] = deque()
        self.reader = asyncio.StreamReader()
        self.begun: list[int] = []
        """Sizes of the batches it ran."""
        self.on_batch: Callable[[list[int]], None] = lambda numbers: None
        """Called with the numbers of the images in every batch it is sent."""
        self._segment_fd = os.dup(segment_fd)
        self._loop: WorkerLoop | None = WorkerLoop(self._segment_fd)
        self._gone = asyncio.Event()

    # --- what the supervisor does

    def kill(self) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        if self.unkillable:
            return
        self.die(-signal.SIGKILL)

    async def wait(self) -> int:
        await self._gone.wait()
        assert self.returncode is not None
        return self.returncode

    def write(self, line: bytes) -> None:
        if self.returncode is not None:
            return
        self.inbox.append(line)
        message = decode(line)
        if isinstance(message, Run):
            self.on_batch(self._numbers(message))

    def close_pipe(self) -> None:
        """The service closes its end of the pipe; a worker that runs then exits."""
        if not self.stopped and not self.unkillable and self.returncode is None:
            self.die(os.EX_OK)
        self._end_of_file()

    # --- what the test does

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def step(self, position: int = 0) -> None:
        """Handle one message, unless it is stopped or gone.

        The oldest is at position 0; a worker of several streams may be done with another first.
        """
        if not self.alive or self.stopped or not self.inbox:
            return
        assert self._loop is not None
        message = decode(self.inbox[position])
        del self.inbox[position]
        if isinstance(message, Run):
            self.begun.append(message.images)
        answer = self._loop.handle(message)
        self.say(encode(answer))
        if isinstance(answer, LoadFailed | EngineFailed):
            self.die(os.EX_SOFTWARE)

    def say(self, line: bytes) -> None:
        if not self.reader.at_eof() and not self.reader._eof:
            self.reader.feed_data(line)

    def die(self, code: int) -> None:
        self.returncode = code
        if self._loop is not None and self._loop._shared is not None:
            self._loop._shared.close()
        self._loop = None
        os.close(self._segment_fd)
        self.inbox.clear()
        self._end_of_file()
        self._gone.set()

    def lose_pipe(self) -> None:
        """It closes its end of the pipe and goes on running."""
        self._end_of_file()

    def _numbers(self, message: Run) -> list[int]:
        assert self._loop is not None
        assert self._loop._shared is not None
        images = self._loop._shared.pixels[message.buffer, : message.images]
        return [int.from_bytes(tile[0, 1].tobytes(), "big") for tile in images]

    def _end_of_file(self) -> None:
        if not self.reader._eof:
            self.reader.feed_eof()


class FakeWorkers:
    """Makes `FakeProcess`es and remembers them."""

    def __init__(self) -> None:
        self.processes: list[FakeProcess] = []
        self.on_batch: Callable[[list[int]], None] = lambda numbers: None

    async def __call__(self, segment_fd: int, threads: int) -> WorkerConnection:
        process = FakeProcess(1000 + len(self.processes), segment_fd)
        process.on_batch = self.on_batch
        self.processes.append(process)
        return WorkerConnection(process, process.reader, process.write, process.close_pipe)

    @property
    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes if process.alive]

    @property
    def last(self) -> FakeProcess:
        return self.processes[-1]
