"""Start a service of our own to measure, or look at one that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

RUN = "from purnet_serve.cli import app; app()"
ADDRESS = re.compile(r"ready at (http://\S+)")
SAMPLE = re.compile(r"^(?P<series>[a-z_]+)(?:\{[^}]*\})? (?P<value>\S+)$")


@dataclass(frozen=True)
class Processors:
    """Who runs where: sets of processor numbers; both None where they cannot be told apart."""

    service: frozenset[int] | None
    generator: frozenset[int] | None

    def __str__(self) -> str:
        if self.service is None:
            return f"{os.cpu_count()} processors shared with the load generator"
        all_of_them = len(self.service) + 1
        return f"{all_of_them} processors, one of them for the load generator alone"


def processors() -> Processors:
    """One processor for the generator, the others for the service."""
    if not hasattr(os, "sched_getaffinity"):
        return Processors(None, None)
    *others, last = sorted(os.sched_getaffinity(0))
    if not others:
        return Processors(None, None)
    return Processors(frozenset(others), frozenset({last}))


@contextmanager
def started(settings: list[str], where: Processors) -> Iterator[str]:
    """`purnet serve` on a free port, with `NAME=VALUE` settings; gives its address.

    From here on this process, the generator, keeps to its own processors.
    """
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-c", RUN, "serve", "--port", "0", *flags]
    _keep_to(where.service)  # which the child inherits
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        _keep_to(where.generator)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := ADDRESS.search(line):
                    yield found[1]
                    break
            else:
                raise SystemExit("The service ended before it was ready.")
        finally:
            process.terminate()
            process.wait(60)


def _keep_to(numbers: frozenset[int] | None) -> None:
    if numbers is not None:
        os.sched_setaffinity(0, numbers)


@dataclass(frozen=True)
class Memory:
    """Resident memory in MiB."""

    api: float
    workers: float


async def memory(client: httpx.AsyncClient) -> Memory:
    """What the processes of the service hold now, as they say themselves."""
    text = (await client.get("/metrics")).text
    totals: dict[str, float] = {}
    for line in text.splitlines():
        if found := SAMPLE.match(line):
            totals[found["series"]] = totals.get(found["series"], 0.0) + float(found["value"])
    return Memory(
        api=totals.get("process_resident_memory_bytes", 0.0) / 2**20,
        workers=totals.get("purnet_worker_resident_bytes", 0.0) / 2**20,
    )
