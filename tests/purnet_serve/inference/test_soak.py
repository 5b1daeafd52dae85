"""Ten minutes of real photos, with faults and reloads: nothing grows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from service_process import ServiceProcess, running

SOAK_S = float(os.environ.get("PURNET_SOAK_S", "600"))
CLIENTS = 6
SAMPLE_EVERY = 25
"""Answers between two looks at the processes."""
KILLS = 2
RELOADS = 2
ALLOWED_BYTES = 20 << 20
ALLOWED_SHARED_BYTES = 16 * 320 * 320 * 4
"""Of one batch, pixels and masks."""

SHIPPED = Path(__file__).parents[3] / "model" / "purnet" / "weights" / "self_check.png"


@dataclass(frozen=True)
class Sample:
    """The service's processes at one moment."""

    at_s: float
    resident_bytes: int
    shared_bytes: int
    descriptors: int
    threads: int
    workers: int


def look(service: ServiceProcess, at_s: float) -> Sample | None:
    """None while a worker comes or goes: there is no telling what belongs to whom."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    try:
        status = [Path(f"/proc/{one}/status").read_text() for one in (pid, *children)]
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return None
    if len(children) != 1:
        return None
    return Sample(
        at_s,
        sum(_kib(text, "VmRSS") for text in status) << 10,
        sum(_kib(text, "RssShmem") for text in status) << 10,
        descriptors,
        sum(_kib(text, "Threads") for text in status),
        len(children),
    )


def _kib(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0


def photos() -> list[Path]:
    data = os.environ.get("PURNET_DATA")
    if data is None:
        return [SHIPPED]
    return sorted(Path(data, "test", "sod226", "image").glob("*.jpg"))


async def soak(service: ServiceProcess, url: str) -> list[Sample]:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    bodies = [path.read_bytes() for path in photos()]
    samples: list[Sample] = []
    answers = 0
    # Faults and reloads fall into the middle third: the outer two are compared.
    events = sorted(
        [(SOAK_S * (1 / 3 + (n + 0.5) / KILLS / 3), "kill") for n in range(KILLS)]
        + [(SOAK_S * (1 / 3 + (n + 1) / RELOADS / 3.5), "reload") for n in range(RELOADS)]
    )

    def meddle() -> None:
        if not events or loop.time() - began_s < events[0][0]:
            return
        _, what = events.pop(0)
        if what == "reload":
            service.signal(signal.SIGHUP)
            return
        pid = service.process.pid
        for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(worker), signal.SIGKILL)

    async def client(first: int) -> None:
        nonlocal answers
        number = first
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            while loop.time() < began_s + SOAK_S:
                answer = await http.post("/v1/mask", files={"image": bodies[number % len(bodies)]})
                assert answer.status_code == 200, answer.text
                number += CLIENTS
                answers += 1
                if answers % SAMPLE_EVERY == 0:
                    sample = look(service, loop.time() - began_s)
                    if sample is not None:
                        samples.append(sample)
                    meddle()

    async with asyncio.TaskGroup() as clients:
        for first in range(CLIENTS):
            clients.create_task(client(first))
    return samples


@pytest.mark.slow
def test_nothing_grows():
    command = ["-c", "from purnet_serve.cli import app; app()", "serve", "--port", "0"]
    with running(command, PURNET_LOG_LEVEL="error") as service:
        line = service.await_line("ready at", service.lines)
        found = re.search(r"http://[\d.:]+", line)
        assert found is not None
        samples = asyncio.run(soak(service, found[0]))
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    first = [sample for sample in samples if sample.at_s < SOAK_S / 3]
    last = [sample for sample in samples if sample.at_s > SOAK_S * 2 / 3]
    assert first
    assert last

    def most(samples: list[Sample], name: str) -> int:
        return max(getattr(sample, name) for sample in samples)

    for name, allowed in (
        ("resident_bytes", ALLOWED_BYTES),
        # The service's own view of a segment grows with the largest batch it has filled.
        ("shared_bytes", ALLOWED_SHARED_BYTES),
        ("descriptors", 0),
        ("threads", 0),
    ):
        before, after = most(first, name), most(last, name)
        print(f"{name}: {before} in the first third, {after} in the last")
        assert after <= before + allowed, name
