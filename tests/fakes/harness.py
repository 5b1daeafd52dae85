"""A local backend on a clock and on workers that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from fake_clock import FakeClockLoop
from fake_predictor import FACTORY, Act, image, number_in
from fake_workers import FakeProcess, FakeWorkers
from prometheus_client import CollectorRegistry

from purnet_serve.inference.backend import ModelInfo, Prediction
from purnet_serve.inference.local import LocalBackend
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import Outcome
from purnet_serve.settings import Settings

SOON_S = 1000.0


class BackendHarness:
    """A local backend on a clock and on workers that the test moves."""

    def __init__(self, checkpoint: Path, **settings: object) -> None:
        self.loop = FakeClockLoop()
        asyncio.set_event_loop(self.loop)
        self.checkpoint = checkpoint
        self.registry = CollectorRegistry()
        self.workers = FakeWorkers()
        self.backend = LocalBackend(
            Settings(checkpoint=checkpoint, **settings),
            InferenceMetrics(self.registry),
            factory=FACTORY,
            spawn=self.workers,
        )

    def start(self) -> None:
        self.loop.finish(self.backend.start())

    def step(self) -> None:
        """Every worker handles one message."""
        self.loop.settle()
        for process in self.workers.alive:
            process.step()
        self.loop.settle()

    def bring_up(self) -> FakeProcess:
        """Let the newest worker load and warm up."""
        self.step()
        self.step()
        return self.workers.last

    def bring_up_last(self) -> FakeProcess:
        """Let the newest worker load and warm up while the others do nothing."""
        process = self.workers.last
        for _ in range(2):
            self.loop.settle()
            process.step()
        self.loop.settle()
        return process

    def work(self) -> None:
        """Let workers work, load and restart until nothing is left for them to do."""
        self.step()
        while any(process.inbox and not process.stopped for process in self.workers.alive):
            self.step()

    def reload(self, checkpoint: Path) -> asyncio.Task[ModelInfo]:
        """Put a file, or no file, where the configured checkpoint is, and ask for a reload."""
        if checkpoint.exists():
            self.checkpoint.write_bytes(checkpoint.read_bytes())
        else:
            self.checkpoint.unlink(missing_ok=True)
        return self.loop.begin(self.backend.reload())

    def send(
        self, number: int, act: Act = Act.NOTHING, deadline_s: float = SOON_S
    ) -> asyncio.Task[Prediction]:
        return self.loop.begin(self.predict(number, act, self.loop.now + deadline_s))

    async def predict(self, number: int, act: Act, deadline_s: float) -> Prediction:
        return await self.backend.predict(image(number, act), deadline_s=deadline_s)

    @staticmethod
    def numbers(calls: Iterable[asyncio.Task[Prediction]]) -> list[object]:
        """Per call: the number in its mask, or the class of its error."""
        return [
            type(call.exception()) if call.exception() else number_in(call.result().mask)
            for call in calls
        ]

    def value(self, name: str, **labels: str) -> float:
        return self.series()[name, tuple(labels.values())]

    def series(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Every sample of every series, by its name and the values of its labels."""
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
        }

    def executions(self) -> dict[str, float]:
        """Executed images by outcome; checked against the batches they ran in."""
        series = self.series()
        found = {kind: series["purnet_executions_total", (kind,)] for kind in Outcome}
        assert sum(found.values()) == series["purnet_batch_size_sum", ()]
        return {str(kind): count for kind, count in found.items() if count}

    def close(self) -> None:
        stop = self.loop.begin(self.backend.stop())
        for _ in range(20):
            if not stop.done():
                self.loop.advance(1)
        assert stop.done()
        stop.result()
        # What is left at this moment: some leaks end by themselves later.
        alive, timers = self.workers.alive, self.loop.timers
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.settle()
        self.loop.close()
        asyncio.set_event_loop(None)
        assert not left, f"stopping left {left} behind"
        assert not alive, "stopping leaves no worker behind"
        assert not timers, "stopping leaves no timer behind"
