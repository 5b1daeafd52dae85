from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from fake_clock import FakeClockLoop
from fake_launch import FakeLaunch, FakeProcess
from fake_predictor import FACTORY, Act, Behaviour, image, number_in

from service.backends.base import Prediction
from service.backends.local import LocalBackend
from service.metrics import Metrics
from service.settings import Settings

SOON_S = 1000.0


class Bench:
    """A local backend on a clock and on workers that the test moves."""

    def __init__(self, checkpoint: Path, **settings: object) -> None:
        self.loop = FakeClockLoop()
        asyncio.set_event_loop(self.loop)
        self.checkpoint = checkpoint
        self.metrics = Metrics()
        self.launch = FakeLaunch()
        self.backend = LocalBackend(
            Settings(checkpoint=checkpoint, **settings),
            self.metrics.queue,
            factory=FACTORY,
            launch=self.launch,
        )

    def start(self) -> None:
        self.loop.finish(self.backend.start())

    def step(self) -> None:
        """Every worker handles one message."""
        self.loop.settle()
        for process in self.launch.alive:
            process.step()
        self.loop.settle()

    def bring_up(self) -> FakeProcess:
        """Let the newest worker load and warm up."""
        self.step()
        self.step()
        return self.launch.last

    def work(self) -> None:
        """Let workers work, load and restart until nothing is left for them to do."""
        self.step()
        while any(process.inbox and not process.stopped for process in self.launch.alive):
            self.step()

    def send(
        self, number: int, act: Act = Act.NOTHING, deadline_s: float = SOON_S
    ) -> asyncio.Task[Prediction]:
        return self.loop.begin(
            self.backend.predict(image(number, act), deadline_s=self.loop.now + deadline_s)
        )

    @staticmethod
    def numbers(calls: Iterable[asyncio.Task[Prediction]]) -> list[object]:
        """Per call: the number in its mask, or the class of its error."""
        return [
            type(call.exception()) if call.exception() else number_in(call.result().mask)
            for call in calls
        ]

    def value(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"there is no series {name} {labels}"
        return value

    def executions(self) -> dict[str, float]:
        """Executed images by outcome; checked against the batches they ran in."""
        kinds = ("mask", "non_finite", "failed", "late", "retried")
        found = {kind: self.value("purnet_executions_total", outcome=kind) for kind in kinds}
        assert sum(found.values()) == self.value("purnet_batch_size_sum")
        return {kind: count for kind, count in found.items() if count}

    def close(self) -> None:
        stop = self.loop.begin(self.backend.stop(0))
        self.loop.advance(20)
        assert stop.done()
        stop.result()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.settle()
        self.loop.close()
        asyncio.set_event_loop(None)
        assert not left, "stopping leaves no task behind"
        assert not self.launch.alive, "stopping leaves no worker behind"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Behaviour().save(tmp_path / "fake.json")


@pytest.fixture
def make_bench(checkpoint: Path) -> Iterator[object]:
    benches: list[Bench] = []

    def make(**settings: object) -> Bench:
        bench = Bench(checkpoint, **settings)
        benches.append(bench)
        bench.start()
        return bench

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench) -> Bench:
    """One worker, up and idle."""
    bench = make_bench()
    bench.bring_up()
    return bench
