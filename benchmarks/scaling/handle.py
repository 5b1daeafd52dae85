"""A process that asks model replicas at their handle, without HTTP; settings come from PURNET_*.

It deploys them, prints a line when all are there, and then answers each `Offer` on its standard
input with an `Offered`, a JSON line each.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import TextIO

import numpy as np
from benchmarks.scaling.engine import FACTORY
from benchmarks.scaling.processes import Offer, Offered
from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter
from ray import serve

from purnet_serve.errors import ServiceError
from purnet_serve.inference.backend import Pixels
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.inference.ray.cluster import RayTier
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.logging import configure_logging
from purnet_serve.settings import Settings

TIMEOUT_S = 30.0
LOOK_S = 0.2
"""Between two looks whether all replicas are there."""


class BothWays(RayTier):
    """Sends pixels as the service does, in the call itself, or through Ray's object store."""

    async def attach(self) -> None:
        """Get a handle of each kind."""
        await super().attach()
        stored = serve.get_app_handle(self._settings.ray_app).options(
            _by_reference=True, method_name="predict", stream=True
        )
        self._ways = {False: self._predict, True: stored}

    def send_by_reference(self, by_reference: bool) -> None:
        """Choose one for the images to come."""
        self._predict = self._ways[by_reference]


class Sender:
    """Sends the images of an offer, which begins now."""

    def __init__(self, backend: RayBackend, pixels: Pixels, offer: Offer) -> None:
        self._backend, self._pixels, self._offer = backend, pixels, offer
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self.latencies_ms: list[float] = []
        self.failed = self.images = 0

    def now_s(self) -> float:
        """Since the beginning."""
        return self._loop.time() - self._began_s

    async def one(self, due_s: float) -> None:
        """Send one image, which counts if it is due in the counted part."""
        counts = self._offer.ramp_s <= due_s < self._offer.ramp_s + self._offer.seconds
        try:
            await self._backend.predict(self._pixels, deadline_s=self._loop.time() + TIMEOUT_S)
        except ServiceError:
            self.failed += counts
            return
        self.images += 1
        if counts:
            self.latencies_ms.append((self.now_s() - due_s) * 1000)

    async def closed_loop(self, clients: int) -> None:
        """Clients that never pause."""

        async def client() -> None:
            while (due_s := self.now_s()) < self._offer.ramp_s + self._offer.seconds:
                await self.one(due_s)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open_loop(self, rate: float) -> None:
        """Images leave when they are due, however many are under way."""
        chance, due_s = random.Random(self._offer.seed), 0.0
        async with asyncio.TaskGroup() as images:
            while (due_s := due_s + chance.expovariate(rate)) < (
                self._offer.ramp_s + self._offer.seconds
            ):
                await asyncio.sleep(max(0.0, due_s - self.now_s()))
                images.create_task(self.one(due_s))


async def send(backend: RayBackend, pixels: Pixels, offer: Offer) -> Offered:
    """Send an offer and wait for its last answer."""
    sender = Sender(backend, pixels, offer)
    if offer.clients is not None:
        await sender.closed_loop(offer.clients)
    elif offer.rate is not None:
        await sender.open_loop(offer.rate)
    return Offered(sorted(sender.latencies_ms), sender.failed, sender.images)


async def drive(settings: Settings, answers: TextIO) -> None:
    """Deploy, then answer offers until standard input ends."""
    tier = BothWays(settings, FACTORY)
    backend = RayBackend(settings, InferenceMetrics(CollectorRegistry()), tier)
    await backend.start()
    try:
        await backend.wait_ready()
        # Nothing says when the last one is there.
        while len(await tier.describe()) < settings.ray_min_replicas:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        model = backend.model
        assert model is not None, "a backend that is ready has a model"
        pixels = np.full((model.input_size, model.input_size, 3), 128, np.uint8)
        print("ready", file=answers, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            offer = TypeAdapter(Offer).validate_json(line)
            tier.send_by_reference(offer.by_reference)
            offered = await send(backend, pixels, offer)
            line = TypeAdapter(Offered).dump_json(offered).decode()
            print(line, file=answers, flush=True)
    finally:
        await backend.stop()


def main() -> None:
    """Drive replicas by the settings of the environment."""
    # Ray prints what it has to say on standard output.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = Settings()
    configure_logging(settings)
    asyncio.run(drive(settings, answers))


if __name__ == "__main__":
    main()
