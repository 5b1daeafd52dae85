"""Start a worker process and hand back the two ends that matter: its pipe and its life."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from purnet_serve.inference.protocol import MAX_LINE_BYTES


class Process(Protocol):
    """As much of a child process as its supervisor uses; `asyncio.subprocess.Process` is one."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None until it is reaped."""
        ...

    def kill(self) -> None:
        """End it at once. Raises `ProcessLookupError` when it has ended."""
        ...

    async def wait(self) -> int:
        """Reap it."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """A worker process and the pipe to it."""

    process: Process
    reader: asyncio.StreamReader
    write: Callable[[bytes], None]
    """Never blocks: what the pipe does not take now is buffered and sent by the loop."""
    hang_up: Callable[[], None]
    """Close our end of the pipe, which ends a worker that is well."""


Launch = Callable[[int, Mapping[str, str]], Awaitable[Link]]
"""(descriptor of the shared segment, environment to add) -> a worker waiting for `Load`."""


async def launch(segment_fd: int, environment: Mapping[str, str]) -> Link:
    """Start `purnet_serve.inference.worker_main` in a fresh interpreter.

    A fresh interpreter and not a fork: a fork would inherit the service's threads' locks. Not
    `multiprocessing` either: its helper process, its copy of `__main__` and its registry of named
    segments are three more lives to look after. The event loop's streams read and write the pipe,
    so a stopped worker cannot stop the service.
    """
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
                # The worker sees the modules the service sees, however those were found.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
                # Its own session: Ctrl-C in a terminal is for the service, which then drains.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE_BYTES)
    except BaseException:
        ours.close()
        raise
    return Link(process, reader, writer.write, writer.transport.abort)


def thread_environment(threads: int) -> dict[str, str]:
    """What tells every numeric library its number of threads, before it is imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
