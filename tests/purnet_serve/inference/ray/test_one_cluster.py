"""Servers of one cluster: they deploy the same without harm, and a frozen replica stops none."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fake_predictor import Behaviour, image, number_in
from ray_cluster import RayCluster, ray_cluster

from purnet_serve.http.event_loop import new_event_loop
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.inference.ray.tier import UnreachableError

LIMIT_S = 240.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(1) as cluster:
        yield cluster


def make_backend(cluster: RayCluster, folder: Path, app: str, replicas: int) -> RayBackend:
    checkpoint = Behaviour().save(folder / "fake.json")
    return cluster.backend(checkpoint, ray_app=app, ray_min_replicas=replicas, ray_cpus=0.5)


async def running(backend: RayBackend) -> None:
    """Return when the application is as it was last deployed."""
    status = None
    while status is None or not status.running:
        status = await backend._tier.status()


def test_deploying_the_same_again_leaves_the_replicas_alone(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async def scenario() -> tuple[list[psutil.Process], list[psutil.Process]]:
        from ray import serve

        backend = make_backend(cluster, tmp_path, "again", 1)
        async with asyncio.timeout(LIMIT_S):
            await backend.start()
            await backend.wait_ready()
            await running(backend)
            before = cluster.replicas()
            # As a server does that read the status before another deployed.
            other = make_backend(cluster, tmp_path, "again", 1)
            await other._tier.deploy()
            await running(backend)
            after = cluster.replicas()
            await asyncio.to_thread(serve.delete, "again")
            await backend.stop()
        return before, after

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        before, after = runner.run(scenario())
    assert len(before) == 1
    assert after == before


def test_a_frozen_replica_hides_no_other(cluster: RayCluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        from ray import serve

        backend = make_backend(cluster, tmp_path, "frozen", 2)
        async with asyncio.timeout(LIMIT_S):
            await backend.start()
            await backend.wait_ready()
            await running(backend)
            answering = 0
            while answering < 2:
                answering = len(await backend._tier.describe())
            frozen, _ = cluster.replicas()
            os.kill(frozen.pid, signal.SIGSTOP)
            try:
                assert len(await backend._tier.describe()) == 1
                deadline_s = asyncio.get_running_loop().time() + LIMIT_S
                prediction = await backend.predict(image(7), deadline_s=deadline_s)
                assert number_in(prediction.mask) == 7
                for replica in cluster.replicas():
                    os.kill(replica.pid, signal.SIGSTOP)
                with pytest.raises(UnreachableError):
                    await backend._tier.describe()
            finally:
                for replica in cluster.replicas():
                    os.kill(replica.pid, signal.SIGCONT)
            await asyncio.to_thread(serve.delete, "frozen")
            await backend.stop()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(scenario())
