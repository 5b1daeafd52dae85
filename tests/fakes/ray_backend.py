"""A `RayBackend` on a clock and on replicas that a test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fake_clock import FakeClockLoop
from fake_tier import SIZE, FakeTier, answer
from prometheus_client import CollectorRegistry

from purnet_serve.inference.backend import Prediction
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.settings import Settings


class Harness:
    """A backend on a clock and on replicas that the test moves."""

    def __init__(self, **settings: Any) -> None:
        self.loop = FakeClockLoop()
        asyncio.set_event_loop(self.loop)
        self.tier = FakeTier()
        self.registry = CollectorRegistry()
        chosen = Settings(backend="ray", **settings)
        self.backend = RayBackend(chosen, InferenceMetrics(self.registry), self.tier)

    def start(self) -> asyncio.Task[None]:
        self.loop.finish(self.backend.start())
        return self.loop.begin(self.backend.wait_ready())

    def send(self, value: int = 7, deadline_s: float = 100.0) -> asyncio.Task[Prediction]:
        pixels = np.full((SIZE, SIZE, 3), value, np.uint8)
        deadline_s += self.loop.now
        return self.loop.begin(self.backend.predict(pixels, deadline_s=deadline_s))

    def answer(self, number: int = -1) -> None:
        _, pixels, call = self.tier.calls[number]
        call.set_result(answer(pixels))
        self.loop.settle()

    def value(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(name, labels)
        assert found is not None
        return found

    def close(self) -> None:
        stop = self.loop.begin(self.backend.stop())
        assert stop.done()
        stop.result()
        timers, left = self.loop.timers, asyncio.all_tasks(self.loop)
        self.loop.close()
        asyncio.set_event_loop(None)
        assert self.tier.closed
        assert not timers
        assert not left
