"""Start a worker process, talk to it over its pipe, and make sure that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from purnet_serve.inference import protocol
from purnet_serve.observability.labels import FailureKind

log = logging.getLogger("purnet_serve.inference")

EXIT_TIMEOUT_S = 1.0
"""How long a worker whose pipe is closed may take to exit before it is killed."""
REAP_TIMEOUT_S = 5.0
"""How long a killed process may take to be reaped. One that is stuck in a driver cannot be, until
the driver returns; its memory is its own, so its successor need not wait for that."""


class WorkerEndError(Exception):
    """A worker has ended, or never came up."""

    def __init__(self, failure: FailureKind, detail: str, traceback: str = "") -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class WorkerConnection:
    """A worker process and the pipe to it."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    write: Callable[[bytes], None]
    """Never blocks: the event loop buffers and sends what the pipe does not take now."""
    close_pipe: Callable[[], None]
    """Close this end of the pipe, which makes a worker exit by itself."""

    @property
    def closed(self) -> bool:
        """Whether the worker is known to have ended, or to have closed its pipe."""
        return self.reader.at_eof() or self.process.returncode is not None

    def send(self, message: protocol.Message) -> None:
        """Send a message; returns at once."""
        self.write(protocol.encode(message))

    async def receive(self) -> protocol.Message | None:
        """Next message; None when the pipe is closed. Raises `ProtocolError`."""
        try:
            line = await self.reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            # A worker that dies with unread messages resets the pipe; `reap` finds out how it died.
            return None
        except asyncio.LimitOverrunError as error:
            raise protocol.ProtocolError("a line without an end") from error
        return protocol.decode(line)

    def kill(self) -> None:
        """End the process now, and close the pipe."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.close_pipe()

    async def reap(self) -> WorkerEndError:
        """Reap a worker whose pipe is closed; kill it first if it goes on. Returns how it ended."""
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                code = await self.process.wait()
        except TimeoutError:
            self.kill()
            try:
                async with asyncio.timeout(REAP_TIMEOUT_S):
                    await self.process.wait()
            except TimeoutError:
                log.error("worker does not end", extra={"pid": self.process.pid})
            detail = "The worker closed its pipe and went on running."
            return WorkerEndError(FailureKind.PIPE, detail)
        self.close_pipe()
        if code < 0:
            detail = f"The worker was ended by signal {-code}."
            return WorkerEndError(FailureKind.SIGNAL, detail)
        return WorkerEndError(FailureKind.EXIT, f"The worker exited with status {code}.")


Spawn = Callable[[int, int], Awaitable[WorkerConnection]]
"""(descriptor of the shared segment, threads of the engine) -> a worker waiting for `Load`."""


async def spawn(segment_fd: int, threads: int) -> WorkerConnection:
    """Start `purnet_serve.inference.worker_main` in a fresh interpreter.

    Not by a fork, which would inherit the locks of the service's threads; not by `multiprocessing`,
    which adds a helper process and a registry of named segments. The event loop's streams read and
    write the pipe, so a stopped worker cannot block the service.
    """
    # Numeric libraries take their number of threads from the environment when they are imported.
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "purnet_serve.inference.worker_main",
                str(theirs.fileno()),
                str(segment_fd),
                str(os.getpid()),
                pass_fds=(theirs.fileno(), segment_fd),
                stdin=asyncio.subprocess.DEVNULL,
                env={
                    **os.environ,
                    # The worker imports from wherever the service does.
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    **dict.fromkeys(variables, str(threads)),
                },
                # Its own session: Ctrl-C in a terminal is for the service, which then drains.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(
            sock=ours, limit=protocol.MAX_LINE_BYTES
        )
    except BaseException:
        ours.close()
        raise
    return WorkerConnection(process, reader, writer.write, writer.transport.abort)
