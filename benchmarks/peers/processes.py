"""Processes of a running server: what they use, and how all of them are ended."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import psutil

SAMPLE_S = 0.5
"""Between two looks at the memory."""
TERM_S, LEFT_S = 20.0, 3.0
"""Seconds that a server has to end, and then what it left behind, before it is killed."""
MIB = 2**20
_PR_SET_CHILD_SUBREAPER = 36
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def adopt_orphans() -> None:
    """Make this process the parent of what its servers orphan (Linux), so that nothing is lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def spawn(
    command: Sequence[str],
    processors: set[int],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str],
    log: IO[bytes],
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, on some processors.

    It gets SIGTERM should this process be killed.
    """
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)  # which the child inherits
    try:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    finally:
        os.sched_setaffinity(0, own)


class ProcessTree:
    """A server and all it started, by parentage: some of it leaves the session and the group.

    That is every descendant of this process but those in `others`, since orphans are adopted and
    one server runs at a time.
    """

    def __init__(self, root: subprocess.Popen[bytes]) -> None:
        self._root = root
        self.others: set[int] = set()

    def members(self) -> list[psutil.Process]:
        """Those that run now."""
        children = psutil.Process().children(recursive=True)
        return [process for process in children if process.pid not in self.others]

    def cpu_s(self) -> float:
        """Processor time so far; a parent's account has that of the children it waited for."""
        return sum(self._each(lambda process: sum(process.cpu_times()[:4])))

    def rss_mib(self) -> float:
        """Resident memory, shared pages counted in each process."""
        return sum(self._each(lambda process: process.memory_info().rss)) / MIB

    def pss_mib(self) -> float:
        """Resident memory, shared pages counted once."""
        return sum(self._each(lambda process: process.memory_full_info().pss)) / MIB

    def strays(self, allowed: set[int]) -> int:
        """Processes that may run elsewhere than they should."""
        affinities = [set(process.cpu_affinity() or ()) for process in self.members()]
        return sum(not affinity <= allowed for affinity in affinities)

    def end(self) -> None:
        """SIGTERM to the server, then to what it left behind, then SIGKILL: each by its id."""
        if self._root.poll() is None:
            self._root.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._root.wait(TERM_S)
        for signal_of in (psutil.Process.terminate, psutil.Process.kill):
            left = self.members()
            for process in left:
                with suppress(*_GONE):
                    signal_of(process)
            _, left = psutil.wait_procs(left, timeout=LEFT_S)
            if not left and not self.members():
                return
        if left := self.members():
            print(f"still running: {[process.pid for process in left]}", file=sys.stderr)

    def _each(self, value: Callable[[psutil.Process], float]) -> Iterator[float]:
        for process in self.members():
            with suppress(*_GONE):
                yield value(process)


class PeakMemory:
    """The most that a tree's resident memory has been, by looking at it twice a second."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._ended = threading.Event()
        self._peak_mib = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at it meanwhile."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def take_mib(self) -> float:
        """The peak since the last call."""
        peak_mib, self._peak_mib = max(self._peak_mib, self._tree.rss_mib()), 0.0
        return peak_mib

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._peak_mib = max(self._peak_mib, self._tree.rss_mib())


def idle_processors(tree: ProcessTree, seconds: float) -> float:
    """Processors in use while nothing is asked."""
    before_s = tree.cpu_s()
    time.sleep(seconds)
    return (tree.cpu_s() - before_s) / seconds
