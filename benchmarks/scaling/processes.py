"""The processes of a measurement: started on their processors, measured, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
from benchmarks.peers.generator import Load, Outcome
from benchmarks.peers.processes import MIB
from benchmarks.service_under_test import ADDRESS
from pydantic import TypeAdapter

ROOT = Path(__file__).parent.parent.parent
END_S = 60.0
MODEL_NODE = "model_node"
"""Custom resource of the Ray node that has room for replicas."""
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


@dataclass(frozen=True)
class Offer:
    """Images to send: by `clients` that never pause, or at a `rate` with Poisson arrivals."""

    clients: int | None
    rate: float | None
    ramp_s: float
    """Part at the beginning that is not counted."""
    seconds: float
    seed: int = 0
    by_reference: bool = False
    """Through Ray's object store instead of in the call itself."""


@dataclass(frozen=True)
class Offered:
    """What came of the images that were due in the counted part."""

    latencies_ms: list[float]
    """Ascending; of a rate, from when the image was due."""
    failed: int
    images: int
    """Answered from the beginning to the end, the ramp included."""


@dataclass(frozen=True)
class Child:
    """A process of ours, with a pipe to it and one from it."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        """The next line it prints. Ends the benchmark when it has ended."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.process.args!r} ended too early; its log says why")
        return line.strip()

    def url(self) -> str:
        """The address of a server, once it is ready."""
        while not (found := ADDRESS.search(self.line())):
            pass
        return found[1]

    def offer(self, offer: Offer) -> Offered:
        """Have the driver of a handle send images."""
        assert self.process.stdin is not None
        self.process.stdin.write(TypeAdapter(Offer).dump_json(offer).decode() + "\n")
        self.process.stdin.flush()
        return TypeAdapter(Offered).validate_json(self.line())


@contextmanager
def child(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
    *,
    on: frozenset[int] | None = None,
    terminate: bool = False,
) -> Iterator[Child]:
    """Run `python ARGUMENTS` on some processors until the context ends.

    Then its standard input is closed, and SIGTERM sent to one that does not end by that.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PURNET_")}
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "model", "service"))
    # Ray asks for a token where the user's home has one.
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    variables = {"PYTHONPATH": paths, **ray, **environment}
    pipe, own = subprocess.PIPE, os.sched_getaffinity(0)
    with log.open("a") as errors:
        os.sched_setaffinity(0, on or own)  # which the child inherits
        try:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=pipe,
                stdout=pipe,
                stderr=errors,
                text=True,
                env=inherited | variables,
                cwd=ROOT,
            )
        finally:
            os.sched_setaffinity(0, own)
    with process:
        try:
            yield Child(process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            if terminate:
                process.terminate()
            process.wait(END_S)


class Group:
    """Processes and all they started, measured together."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    def cpu_s(self) -> float:
        """Processor time so far; a parent's account has that of the children it waited for."""
        return sum(self._each(lambda process: sum(process.cpu_times()[:4])))

    def busy_processors(self, seconds: float) -> float:
        """Processors in use over so many seconds from now."""
        before_s = self.cpu_s()
        time.sleep(seconds)
        return (self.cpu_s() - before_s) / seconds

    def pss_mib(self) -> float:
        """Resident memory, shared pages counted once."""
        return sum(self._each(lambda process: process.memory_full_info().pss)) / MIB

    def _each(self, value: Callable[[psutil.Process], float]) -> Iterator[float]:
        for one in self._children:
            root = psutil.Process(one.process.pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(*_GONE):
                    yield value(process)


def post(load: Load, on: frozenset[int] | None) -> Outcome:
    """Send a load over HTTP from a process of its own."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, on or own)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
    finally:
        os.sched_setaffinity(0, own)
    try:
        told, _ = process.communicate(TypeAdapter(Load).dump_json(load))
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise SystemExit("the load generator failed")
    return TypeAdapter(Outcome).validate_json(told)
