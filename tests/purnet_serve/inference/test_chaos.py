"""Ten thousand images through real workers that are killed at random: each gets its own mask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal

from fake_predictor import FACTORY, Behaviour, image, number_in
from prometheus_client import CollectorRegistry

from purnet_serve.errors import WorkerError
from purnet_serve.inference.local import LocalBackend
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.settings import Settings

IMAGES = 10_000
CLIENTS = 96
KILL_EVERY = 500
SEED = 20_240_229
TIMEOUT_S = 120.0


def test_every_image_gets_its_own_mask_while_workers_are_killed(checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    registry = CollectorRegistry()
    backend = LocalBackend(
        Settings(checkpoint=checkpoint, device="cuda:0,cuda:1", watchdog_s=1, max_timeout_s=600),
        InferenceMetrics(registry),
        factory=FACTORY,
    )
    chance = random.Random(SEED)
    numbers = iter(range(IMAGES))
    answered: list[int] = []
    failed: list[int] = []
    kills: list[int] = []

    def kill_one() -> None:
        workers = [executor.worker for executor in backend._devices if executor.worker is not None]
        if workers:
            deadly = chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers).connection.process.pid, deadly)
                kills.append(deadly)

    async def client() -> None:
        loop = asyncio.get_running_loop()
        for number in numbers:
            try:
                prediction = await backend.predict(
                    image(number), deadline_s=loop.time() + TIMEOUT_S
                )
            except WorkerError:
                failed.append(number)
                continue
            assert number_in(prediction.mask) == number, "another's mask"
            answered.append(number)
            if len(answered) % KILL_EVERY == 0:
                kill_one()

    async def scenario() -> None:
        await backend.start()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await backend.wait_ready()
                async with asyncio.TaskGroup() as clients:
                    for _ in range(CLIENTS):
                        clients.create_task(client())
        finally:
            await backend.stop()

    asyncio.run(scenario())
    assert sorted(answered + failed) == list(range(IMAGES))
    assert kills
    assert len(failed) <= len(kills), "a kill costs at most the one image that runs alone"
    outcomes = {
        sample.labels["outcome"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "purnet_executions_total"
    }
    executed = registry.get_sample_value("purnet_batch_size_sum")
    assert outcomes["mask"] == len(answered)
    assert outcomes["failed"] == len(failed)
    assert executed == IMAGES + outcomes["retried"]
