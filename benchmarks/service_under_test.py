"""Start a service of our own to measure, or look at one that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

RUN = "from service.cli import app; app()"
ADDRESS = re.compile(r"ready at (http://\S+)")
SAMPLE = re.compile(r"^(?P<series>[a-z_]+)(?:\{[^}]*\})? (?P<value>\S+)$")


@contextmanager
def started(settings: list[str]) -> Iterator[str]:
    """`purnet serve` on a free port, with `NAME=VALUE` settings; gives its address."""
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-c", RUN, "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
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
