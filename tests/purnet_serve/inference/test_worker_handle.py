"""Real worker processes; only the network in them is fake."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_predictor import DEADLY, FACTORY, Act, Behaviour, image, number_in
from gate import TIMEOUT_S, Gate

from purnet_serve.errors import NonFiniteError, ReloadError, StartupError, WorkerError
from purnet_serve.inference.local import LocalBackend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings


class Service:
    """A started local backend over real workers."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self.backend = LocalBackend(settings, self.metrics.inference, factory=FACTORY)

    async def send(self, number: int, act: Act = Act.NOTHING):
        deadline_s = asyncio.get_running_loop().time() + TIMEOUT_S
        return await self.backend.predict(image(number, act), deadline_s=deadline_s)

    @property
    def pid(self) -> int:
        worker = self.backend._devices[0].worker
        assert worker is not None
        return worker.connection.process.pid

    def value(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None
        return value


@asynccontextmanager
async def running(checkpoint: Path, **settings: object) -> AsyncIterator[Service]:
    service = Service(Settings(checkpoint=checkpoint, **settings))
    await service.backend.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await service.backend.wait_ready()
        yield service
    finally:
        await service.backend.stop()


async def answers(calls) -> list[object]:
    """Per call: the number in its mask, or the class of its error."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [type(r) if isinstance(r, BaseException) else number_in(r.mask) for r in results]


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.close()


@pytest.fixture
def gated(tmp_path, gate) -> Path:
    return Behaviour(gate=str(gate.folder)).save(tmp_path / "gated.json")


def test_fifteen_images_that_come_while_one_runs_are_one_batch(gate, gated):
    async def scenario() -> None:
        async with running(gated) as service:
            first = asyncio.create_task(service.send(0))
            assert await gate.entered() == [0]
            others = [asyncio.create_task(service.send(number)) for number in range(1, 16)]
            gate.leave()
            assert await gate.entered() == list(range(1, 16))
            gate.leave()
            assert await answers([first, *others]) == list(range(16))
            assert service.value("purnet_batch_size_count") == 2
            assert service.value("purnet_batch_size_sum") == 16

    asyncio.run(scenario())


@pytest.mark.parametrize("act", DEADLY, ids=lambda act: act.name.lower())
def test_a_deadly_image_among_16_fails_alone(checkpoint, act):
    async def scenario() -> None:
        async with running(checkpoint, watchdog_s=1) as service:
            first = asyncio.create_task(service.send(100))
            calls = [
                asyncio.create_task(service.send(n, act if n == 5 else Act.NOTHING))
                for n in range(16)
            ]
            assert await answers(calls) == [n if n != 5 else WorkerError for n in range(16)]
            assert number_in((await first).mask) == 100
            assert service.value("purnet_executions_total", outcome="failed") == 1
            assert service.backend.unready_reason() is None

    asyncio.run(scenario())


def test_a_non_finite_image_among_16_fails_alone(checkpoint):
    async def scenario() -> None:
        async with running(checkpoint) as service:
            calls = [service.send(n, Act.NON_FINITE if n == 5 else Act.NOTHING) for n in range(16)]
            assert await answers(calls) == [n if n != 5 else NonFiniteError for n in range(16)]

    asyncio.run(scenario())


def test_out_of_memory_loses_nobody(checkpoint):
    async def scenario() -> None:
        async with running(checkpoint) as service:
            pid = service.pid
            calls = [service.send(n, Act.CROWDED if n == 5 else Act.NOTHING) for n in range(16)]
            assert await answers(calls) == list(range(16))
            assert service.pid == pid

    asyncio.run(scenario())


def test_a_replaced_worker_that_is_continued_writes_into_no_mask(gate, gated):
    async def scenario() -> None:
        async with running(gated, watchdog_s=1) as service:
            first = asyncio.create_task(service.send(1))
            await gate.entered()
            stopped = service.pid
            os.kill(stopped, signal.SIGSTOP)
            assert await gate.entered() == [1], "the next worker has it"
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
            gate.leave(2)
            assert await answers([first]) == [1]
            assert gone(stopped)
            assert await answers([service.send(2)]) == [2]

    asyncio.run(scenario())


def test_signals_to_the_whole_group_leave_the_worker_at_work(gate, gated):
    async def scenario() -> None:
        async with running(gated) as service:
            pid = service.pid
            call = asyncio.create_task(service.send(1))
            await gate.entered()
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            gate.leave()
            assert await answers([call]) == [1]
            assert service.pid == pid

    asyncio.run(scenario())


def test_nothing_is_left_after_a_stop(checkpoint):
    descriptors = Path("/proc/self/fd")

    async def scenario() -> int:
        before = len(list(descriptors.iterdir()))
        async with running(checkpoint) as service:
            pid = service.pid
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "memfd:purnet-batches (deleted)" in maps, "the segment has no name to leave"
            assert "/dev/shm" not in maps
            with contextlib.suppress(WorkerError):
                await service.send(1, Act.KILL)
        assert len(asyncio.all_tasks()) == 1
        # Closed pipes leave the selector one turn of the loop later.
        turn = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turn.set_result, None)
        await turn
        assert len(list(descriptors.iterdir())) == before
        return pid

    assert gone(asyncio.run(scenario()))


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
def test_no_worker_survives_a_killed_parent(tmp_path, gate, gated, state):
    script = f"""
import asyncio, sys
from pathlib import Path
from fake_predictor import FACTORY, image
from purnet_serve.inference.local import LocalBackend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

async def main():
    settings = Settings(checkpoint=Path({str(gated)!r}))
    backend = LocalBackend(settings, Metrics().inference, factory=FACTORY)
    await backend.start()
    await backend.wait_ready()
    print(backend._devices[0].worker.connection.process.pid, flush=True)
    if {state != "idle"}:
        await backend.predict(image(1), deadline_s=asyncio.get_running_loop().time() + 60)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if state != "idle":
            asyncio.run(gate.entered())
        watch = os.pidfd_open(pid)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait(TIMEOUT_S)
        _wait_for_end(watch)


def _wait_for_end(pidfd: int) -> None:
    """A pidfd becomes readable when its process is gone."""

    async def scenario() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        async with asyncio.timeout(TIMEOUT_S):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(pidfd)

    try:
        asyncio.run(scenario())
    finally:
        os.close(pidfd)


def test_a_device_that_is_not_there_fails_the_start(checkpoint):
    async def scenario() -> None:
        with pytest.raises(StartupError, match="no device cuda:7"):
            async with running(checkpoint, device="cuda:7"):
                pass

    asyncio.run(scenario())


def test_a_reload_under_load_loses_nothing(checkpoint):
    async def scenario() -> None:
        async with running(checkpoint) as service:
            reloaded = asyncio.Event()
            names: list[str] = []

            async def client(first: int) -> None:
                number = first
                while not reloaded.is_set():
                    prediction = await service.send(number)
                    assert number_in(prediction.mask) == number
                    names.append(prediction.model.name)
                    number += 8

            async with asyncio.TaskGroup() as clients:
                for first in range(8):
                    clients.create_task(client(first))
                checkpoint.write_text("{}}")
                with pytest.raises(ReloadError):
                    await service.backend.reload()
                Behaviour(name="other").save(checkpoint)
                assert (await service.backend.reload()).name == "other"
                await service.send(9)
                reloaded.set()
            assert set(names) <= {"fake", "other"}
            assert names == sorted(names), "the version flips once"

    asyncio.run(scenario())


def test_the_worker_takes_its_threads_from_the_settings(tmp_path, checkpoint):
    async def scenario() -> None:
        async with running(checkpoint, engine_threads=3) as service:
            environment = Path(f"/proc/{service.pid}/environ").read_bytes().split(b"\0")
            assert b"OMP_NUM_THREADS=3" in environment
            assert service.value("purnet_worker_resident_bytes", device="cpu") > 1 << 20
            assert service.value("purnet_worker_device_bytes", device="cpu") == 4096

    asyncio.run(scenario())


def test_the_service_process_loads_no_torch():
    code = (
        "import sys, json, purnet_serve.inference.local, purnet_serve.inference.worker_main; "
        "print(json.dumps(sorted(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "torch" not in json.loads(shown.stdout)
