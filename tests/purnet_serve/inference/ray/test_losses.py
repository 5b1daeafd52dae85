"""What a cluster loses when parts of it are replaced under load: nothing; or killed: no answer.

The images carry numbers, and each mask must carry its own image's; what was under way when a part
was killed may get an error that says so. Run with `-rP` to read what was
lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from fake_predictor import Behaviour, image, number_in
from gate import Gate
from ray_cluster import RayCluster, ray_cluster

from purnet_serve.errors import BusyError, DeadlineError, NotReadyError, ServiceError, WorkerError
from purnet_serve.http.event_loop import new_event_loop
from purnet_serve.inference.backend import Prediction
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.inference.ray.messages import unpack_state
from purnet_serve.inference.ray.tier import NoReplicaError, UnreachableError

IMAGES = 10_000
CLIENTS = 48
TIMEOUT_S = 60.0
"""Of each image."""
LIMIT_S = 400.0
"""Of a whole test."""
TRUTHFUL = {WorkerError, NotReadyError, DeadlineError}
"""What may be said of an image that was lost with its replica."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2) as cluster:
        yield cluster


@asynccontextmanager
async def started(backend: RayBackend) -> AsyncIterator[RayBackend]:
    from ray import serve

    await backend.start()
    try:
        async with asyncio.timeout(LIMIT_S):
            await backend.wait_ready()
            yield backend
    finally:
        # The cluster has to find room for the next test's.
        await asyncio.to_thread(serve.delete, backend._settings.ray_app)
        await backend.stop()


async def replicas_deployed_by(backend: RayBackend, replicas: int) -> None:
    """Return when so many replicas answer, all of them as this backend would deploy them."""
    tier = backend._tier
    found: list[str | None] = []
    while found != [tier.digest] * replicas:
        with contextlib.suppress(NoReplicaError, UnreachableError):  # one that is about to end
            found = [unpack_state(values).deployed for values in await tier.describe()]


@dataclass
class Load:
    """Clients that send one image after another and check every mask."""

    backend: RayBackend
    events: dict[int, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """By number of answers: what is done then, while the load goes on."""
    clients: int = CLIENTS
    answered: int = 0
    failed: Counter[type[ServiceError]] = field(default_factory=Counter)
    _doing: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, enough: Callable[[], bool]) -> None:
        """Send until it is enough and everything that was to be done is done."""
        numbers = count()
        async with asyncio.TaskGroup() as clients:
            for _ in range(self.clients):
                clients.create_task(self._client(numbers, enough))
        await asyncio.gather(*self._doing)
        assert not self.events

    async def _client(self, numbers: Iterator[int], enough: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while not enough() or not all(one.done() for one in self._doing):
            number = next(numbers)
            try:
                prediction = await self.backend.predict(
                    image(number), deadline_s=loop.time() + TIMEOUT_S
                )
            except ServiceError as error:
                self.failed[type(error)] += 1
                continue
            assert number_in(prediction.mask) == number, "another's mask"
            self.answered += 1
            if (event := self.events.pop(self.answered, None)) is not None:
                self._doing.append(asyncio.ensure_future(event()))  # type: ignore[arg-type]

    def report(self, what: str) -> None:
        lost = {kind.__name__: images for kind, images in self.failed.items()}
        print(f"{what}: {self.answered} masks, each its image's own; lost: {lost or 'nothing'}")


def test_a_replica_and_then_a_whole_node_are_killed(cluster: RayCluster, tmp_path: Path) -> None:
    checkpoint = Behaviour().save(tmp_path / "fake.json")
    backend = cluster.backend(checkpoint, ray_app="killed", ray_min_replicas=4, ray_cpus=0.5)

    async def kill_a_replica() -> None:
        os.kill(cluster.replicas(0)[0].pid, signal.SIGKILL)

    async def kill_the_second_node() -> None:
        await asyncio.to_thread(cluster.kill_node, 1)

    async def scenario() -> Load:
        async with started(backend):
            await replicas_deployed_by(backend, 4)
            assert {len(cluster.replicas(0)), len(cluster.replicas(1))} == {2}
            load = Load(backend, {IMAGES // 4: kill_a_replica, IMAGES // 2: kill_the_second_node})
            await load.run(lambda: load.answered + load.failed.total() >= IMAGES)
            return load

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        load = runner.run(scenario())
    load.report("a replica, then its cluster's second node killed")
    assert load.answered + load.failed.total() >= IMAGES
    assert set(load.failed) <= TRUTHFUL
    assert load.failed.total() <= CLIENTS, "at most what was on its way at one of the two moments"
    cluster.add_node()


def test_a_rolling_update_and_a_scale_down_lose_nothing(
    cluster: RayCluster, tmp_path: Path
) -> None:
    checkpoint = Behaviour().save(tmp_path / "fake.json")
    settings = {"ray_app": "rolled", "ray_cpus": 0.5}
    before = cluster.backend(checkpoint, ray_min_replicas=2, **settings)
    after = cluster.backend(checkpoint, ray_min_replicas=2, max_batch=8, **settings)
    fewer = cluster.backend(checkpoint, ray_min_replicas=1, max_batch=8, **settings)

    async def roll() -> None:
        await after._tier.deploy()
        await after._tier.attach()
        await replicas_deployed_by(after, 2)

    async def scale_down() -> None:
        await fewer._tier.deploy()
        await fewer._tier.attach()
        await replicas_deployed_by(fewer, 1)

    async def scenario() -> tuple[Load, Load]:
        async with started(before):
            await replicas_deployed_by(before, 2)
            loads = []
            for event in (roll, scale_down):
                load = Load(before, {500: event})
                await load.run(lambda load=load: load.answered >= 1000)  # type: ignore[misc]
                loads.append(load)
            return loads[0], loads[1]

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        rolled, scaled = runner.run(scenario())
    rolled.report("all replicas replaced, one after another")
    scaled.report("one of two replicas removed")
    assert not rolled.failed
    assert not scaled.failed


def test_replicas_are_added_under_load_and_removed_after_it(
    cluster: RayCluster, tmp_path: Path
) -> None:
    checkpoint = Behaviour().save(tmp_path / "fake.json")
    backend = cluster.backend(
        checkpoint,
        ray_app="scaled",
        ray_cpus=0.5,
        ray_max_replicas=2,
        ray_target_in_flight=4,
        ray_upscale_delay_s=1,
        ray_downscale_delay_s=5,
    )

    async def scenario() -> tuple[Load, Load]:
        async with started(backend):
            loads = Load(backend), Load(backend, clients=1)
            for load, replicas in zip(loads, (2, 1), strict=True):
                scaled = asyncio.create_task(replicas_deployed_by(backend, replicas))
                await load.run(scaled.done)
            return loads

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        up, down = runner.run(scenario())
    up.report("a replica added")
    down.report("and removed")
    assert not up.failed
    assert not down.failed


def test_what_finds_no_room_is_refused_and_what_has_room_is_answered(
    cluster: RayCluster, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    checkpoint = Behaviour(gate=str(tmp_path)).save(tmp_path / "fake.json")
    backend = cluster.backend(
        checkpoint,
        ray_app="full",
        ray_cpus=0.5,
        ray_max_in_flight=2,
        ray_max_queued=3,
    )

    async def scenario() -> list[Prediction | BaseException]:
        async with started(backend):
            deadline_s = asyncio.get_running_loop().time() + TIMEOUT_S
            calls = [
                asyncio.create_task(backend.predict(image(number), deadline_s=deadline_s))
                for number in range(20)
            ]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            gate.leave(1000)
            return await asyncio.gather(*calls, return_exceptions=True)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        outcomes = runner.run(scenario())
    gate.close()
    refused = [one for one in outcomes if isinstance(one, BusyError)]
    answered = [one for one in outcomes if isinstance(one, Prediction)]
    assert refused
    assert answered
    assert len(refused) + len(answered) == 20
    assert all(one.retry_after_s for one in refused)
