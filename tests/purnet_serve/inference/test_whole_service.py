"""The service as a process, over HTTP, with real workers: signals and kills under load."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from fake_predictor import Behaviour, image, number_in
from PIL import Image
from ray_cluster import ray_cluster
from service_process import ServiceProcess, running

CLIENTS = 8
TIMEOUT_S = 60.0
DO_AFTER = 50
"""Answers after which a test does what it is about."""


@contextmanager
def serving(checkpoint: Path, **environment: str) -> Iterator[tuple[ServiceProcess, str]]:
    script = str(Path(__file__).parents[2] / "fakes" / "serve_fake_engine.py")
    environment = {
        "PURNET_PORT": "0",
        "PURNET_CHECKPOINT": str(checkpoint),
        "PURNET_RAY_APP": checkpoint.parent.name,
        **environment,
    }
    with running([script], **environment) as service:
        yield service, service.await_line("http://", service.lines)


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Variables that say where the fake network runs: in the service, or on Ray."""
    if request.param == "local":
        yield {}
        return
    with ray_cluster(1) as cluster:
        address = {"PURNET_BACKEND": "ray", "PURNET_RAY_ADDRESS": cluster.address}
        # What a test deployed stays, and all of it must find room.
        yield {**address, "PURNET_RAY_CPUS": "0.5"}


def workers_of(service: ServiceProcess) -> list[int]:
    pid = service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(number)).save(file, "PNG")
    return file.getvalue()


class Load:
    """Clients that post until they are turned away, and check every mask they get."""

    def __init__(self, url: str, do: Callable[[], None]) -> None:
        self.url = url
        self.do = do
        self.enough: Callable[[], bool] = lambda: False
        self.answers = 0
        self.names: list[list[str]] = [[] for _ in range(CLIENTS)]
        """Models that answered each client, in its order."""
        self.refusals: list[str] = []
        self.cut_off = 0
        """Clients whose connection was refused, or closed before they were heard."""

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as clients:
            for first in range(CLIENTS):
                clients.create_task(self._client(first))

    async def _client(self, first: int) -> None:
        number = first
        async with httpx.AsyncClient(
            base_url=self.url, timeout=TIMEOUT_S, trust_env=False
        ) as client:
            while not self.enough():
                try:
                    answer = await client.post(
                        "/v1/mask", content=png(number), headers={"Content-Type": "image/png"}
                    )
                except httpx.TransportError:
                    self.cut_off += 1
                    return
                if answer.status_code == 503:
                    self.refusals.append(answer.json()["code"])
                    return
                assert answer.status_code == 200, answer.text
                with Image.open(io.BytesIO(answer.content)) as mask:
                    assert number_in(np.asarray(mask)) == number
                self.names[first].append(answer.headers["X-Model-Version"].partition("@")[0])
                self.answers += 1
                if self.answers == DO_AFTER:
                    self.do()
                number += CLIENTS


def test_sigterm_under_load_fails_nothing_that_was_accepted(checkpoint, where):
    with serving(checkpoint, PURNET_DRAIN_DELAY_S="1", **where) as (service, url):
        load = Load(url, lambda: service.signal(signal.SIGTERM))
        load.run()
        assert service.wait() == 0
    assert set(load.refusals) <= {"draining"}
    assert len(load.refusals) + load.cut_off == CLIENTS
    # A connection may close while a client begins to write to it: that request was never read.
    # What the service did read, it answered, and the answer arrived.
    statuses = Counter(log["status"] for log in service.logs if log["event"] == "request")
    assert statuses[200] == load.answers >= DO_AFTER
    assert set(statuses) <= {200, 503}


def test_sighup_under_load_flips_the_version_once_and_fails_nothing(checkpoint, where):
    with serving(checkpoint, **where) as (service, url):

        def replace() -> None:
            Behaviour(name="next").save(checkpoint)
            service.signal(signal.SIGHUP)

        load = Load(url, replace)
        load.enough = lambda: all(names[-1:] == ["next"] for names in load.names)
        load.run()
        assert not load.refusals
        assert not load.cut_off
        for names in load.names:
            assert names == sorted(names), "the version flips once"
            assert set(names) <= {"fake", "next"}
        assert '"next"' in httpx.get(f"{url}/v1/models", trust_env=False).text


def test_a_refused_reload_under_load_fails_nothing(checkpoint, where):
    with serving(checkpoint, **where) as (service, url):

        def ruin() -> None:
            checkpoint.write_text("rubbish")
            service.signal(signal.SIGHUP)

        load = Load(url, ruin)
        load.enough = lambda: any("reload refused" in line for line in service.errors)
        load.run()
        assert not load.refusals
        assert not load.cut_off
        assert {name for names in load.names for name in names} == {"fake"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_worker_killed_under_load_fails_nothing(checkpoint, number):
    with serving(checkpoint, PURNET_WATCHDOG_S="1") as (service, url):
        load = Load(url, lambda: os.kill(workers_of(service)[0], number))
        load.enough = lambda: load.answers >= DO_AFTER + 100
        load.run()
        assert not load.refusals
        assert not load.cut_off
