"""What every backend promises, held against each: one machine, and Ray on one node and on two.

Everything is real but the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_predictor import FACTORY, Act, Behaviour, image, number_in
from gate import Gate
from prometheus_client import CollectorRegistry
from ray_cluster import held_by_replicas, ray_cluster

from purnet_serve.errors import (
    DeadlineError,
    DrainingError,
    NonFiniteError,
    NotReadyError,
    ReloadError,
    ServiceError,
    StartupError,
    WorkerError,
)
from purnet_serve.http.event_loop import new_event_loop
from purnet_serve.inference.backend import Backend, Prediction
from purnet_serve.inference.local import LocalBackend
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.settings import Settings

WAIT_S = 120.0
"""Nothing here takes as long."""
HELD = 1000
FIRST = 4
"""Images for each worker, for `gated`."""

# Ray's, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

MakeBackend = Callable[..., Backend]
KINDS = [
    pytest.param(0, id="local"),
    pytest.param(1, id="ray on one node", marks=pytest.mark.slow),
    pytest.param(2, id="ray on two nodes", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS)
def nodes(request: pytest.FixtureRequest) -> int:
    """Nodes of Ray; none for a local backend."""
    return int(request.param)


@pytest.fixture(scope="module")
def make_backend(nodes: int) -> Iterator[MakeBackend]:
    """`make(**settings)`: a backend of that kind, not started, with a replica on every node."""
    apps = count()
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(nodes)) if nodes else None

        def make(**settings: Any) -> Backend:
            if cluster is not None:
                app = f"app{next(apps)}"
                return cluster.backend(ray_app=app, ray_min_replicas=nodes, **settings)
            metrics = InferenceMetrics(CollectorRegistry())
            return LocalBackend(Settings(**settings), metrics, factory=FACTORY)

        yield make


class Running:
    """A backend that is up, for tests that leave it as it was."""

    def __init__(self, runner: asyncio.Runner, backend: Backend, checkpoint: Path) -> None:
        self.backend = backend
        self.checkpoint = checkpoint
        self._runner = runner

    def run(self, scenario: Coroutine[Any, Any, Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(WAIT_S):
                return await scenario

        return self._runner.run(limited())

    async def send(
        self, number: int, act: Act = Act.NOTHING, timeout_s: float = WAIT_S
    ) -> Prediction:
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        return await self.backend.predict(image(number, act), deadline_s=deadline_s)

    async def outcome(self, number: int, act: Act = Act.NOTHING) -> int | type[ServiceError]:
        """The number in the mask, or the class of the error."""
        try:
            return number_in((await self.send(number, act)).mask)
        except ServiceError as error:
            return type(error)


@pytest.fixture(scope="module")
def running(
    make_backend: MakeBackend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    checkpoint = Behaviour().save(tmp_path_factory.mktemp("running") / "fake.json")
    backend = make_backend(checkpoint=checkpoint, watchdog_s=60)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        up = Running(runner, backend, checkpoint)
        up.run(backend.start())
        try:
            up.run(backend.wait_ready())
            yield up
        finally:
            up.run(backend.stop())


@asynccontextmanager
async def gated(running: Running, nodes: int, folder: Path) -> AsyncIterator[Gate]:
    """With a model that holds each batch until it is let go, and a batch in every worker.

    The images in them have numbers from `HELD` on.
    """
    gate = Gate(folder)
    Behaviour(gate=str(folder)).save(running.checkpoint)
    await running.backend.reload()
    workers = max(1, nodes)
    # Enough of them for all workers, whichever way they are spread.
    first = [asyncio.create_task(running.send(HELD + number)) for number in range(FIRST * workers)]
    for _ in range(workers):
        await gate.entered()
    try:
        yield gate
    finally:
        gate.leave(1000)
        await asyncio.gather(*first)
        Behaviour().save(running.checkpoint)
        await running.backend.reload()
        gate.close()


async def held(running: Running, images: int) -> None:
    """Return when that many images are where they are computed, waiting or not."""
    backend = running.backend
    if isinstance(backend, RayBackend):
        # A client that leaves is heard of there a moment later.
        while await held_by_replicas(backend._settings.ray_app) != images:
            continue
    else:
        await asyncio.sleep(0)


def test_it_says_what_it_is(running: Running) -> None:
    backend = running.backend
    assert backend.unready_reason() is None
    assert backend.model is not None
    assert (backend.model.name, backend.model.input_size) == ("fake", 16)
    assert backend.throughput is not None
    assert backend.throughput.interval_s <= backend.throughput.latency_s
    assert backend.queued == 0
    backend.expect(1)
    backend.expect(-1)


def test_every_image_gets_its_own_mask(running: Running) -> None:
    async def scenario() -> None:
        predictions = await asyncio.gather(*(running.send(number) for number in range(60)))
        assert [number_in(one.mask) for one in predictions] == list(range(60))
        for one in predictions:
            assert one.model == running.backend.model
            assert one.queue_s >= 0
            assert one.infer_s > 0
            assert one.batch_size >= 1

    running.run(scenario())


def test_pixels_that_do_not_fit_are_refused(running: Running) -> None:
    for pixels in (np.zeros((17, 16, 3), np.uint8), np.zeros((16, 16, 3), np.float32)):
        with pytest.raises(ValueError, match="not uint8"):
            running.run(running.backend.predict(pixels, deadline_s=1e9))
    # Where a model may be replaced by one of another size, they are to be sent again.
    with pytest.raises((ValueError, NotReadyError)):
        running.run(running.backend.predict(np.zeros((17, 17, 3), np.uint8), deadline_s=1e9))


def test_an_image_that_ends_its_worker_fails_alone(running: Running) -> None:
    async def scenario() -> None:
        acts = {5: Act.KILL, 11: Act.RAISE, 17: Act.NON_FINITE}
        sent = [running.outcome(n, acts.get(n, Act.NOTHING)) for n in range(24)]
        expected: list[object] = list(range(24))
        expected[5] = expected[11] = WorkerError
        expected[17] = NonFiniteError
        assert await asyncio.gather(*sent) == expected

    running.run(scenario())


def test_a_deadline_that_has_passed_is_refused(running: Running) -> None:
    with pytest.raises(DeadlineError):
        running.run(running.send(1, timeout_s=0))


def test_a_deadline_is_kept_while_every_worker_is_busy(
    running: Running, nodes: int, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with gated(running, nodes, tmp_path):
            with pytest.raises(DeadlineError):
                await running.send(1, timeout_s=0.2)

    running.run(scenario())


def test_an_image_whose_client_has_left_never_reaches_a_device(
    running: Running, nodes: int, tmp_path: Path
) -> None:
    workers = max(1, nodes)

    async def scenario() -> None:
        async with gated(running, nodes, tmp_path) as gate:
            leaving = [asyncio.create_task(running.send(number)) for number in range(20)]
            staying = asyncio.create_task(running.send(77))
            await held(running, FIRST * workers + 21)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            assert all(task.cancelled() for task in leaving)
            await held(running, FIRST * workers + 1)
            seen: list[int] = []
            gate.leave(1000)
            while 77 not in seen:
                seen += [number for number in await gate.entered() if number < HELD]
            assert number_in((await staying).mask) == 77
            assert seen == [77]

    running.run(scenario())


def test_a_reload_takes_what_lies_at_the_path_now(running: Running) -> None:
    async def scenario() -> None:
        Behaviour(name="next").save(running.checkpoint)
        found = await running.backend.reload()
        assert found.name == "next"
        assert running.backend.model == found
        predictions = await asyncio.gather(*(running.send(number) for number in range(20)))
        assert {one.model for one in predictions} == {found}
        Behaviour().save(running.checkpoint)
        await running.backend.reload()

    running.run(scenario())


@pytest.mark.parametrize(
    ("bad", "why"),
    [(None, "is not a checkpoint"), (Behaviour(input_size=32), "takes images of 32 pixels")],
    ids=["rubbish", "another size"],
)
def test_a_reload_that_is_refused_says_why_and_changes_nothing(
    running: Running, bad: Behaviour | None, why: str
) -> None:
    async def scenario() -> None:
        before = running.backend.model
        if bad is None:
            running.checkpoint.write_text("rubbish")
        else:
            bad.save(running.checkpoint)
        with pytest.raises(ReloadError, match=why):
            await running.backend.reload()
        assert (await running.send(1)).model == running.backend.model == before
        Behaviour().save(running.checkpoint)

    running.run(scenario())


def test_a_start_that_is_refused_says_why(make_backend: MakeBackend, tmp_path: Path) -> None:
    why = "There is no device cuda:7 here."
    checkpoint = Behaviour(refuse=why).save(tmp_path / "fake.json")

    async def scenario() -> None:
        backend = make_backend(checkpoint=checkpoint)
        await backend.start()
        try:
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(StartupError) as refused:
                    await backend.wait_ready()
            assert str(refused.value) == why
            assert backend.model is None
            with pytest.raises(NotReadyError):
                await backend.predict(image(1), deadline_s=1e9)
        finally:
            await backend.stop()

    asyncio.run(scenario())


def test_stopping_fails_what_is_open_and_refuses_more(
    make_backend: MakeBackend, nodes: int, tmp_path: Path
) -> None:
    async def scenario(runner: asyncio.Runner) -> None:
        checkpoint = Behaviour().save(tmp_path / "fake.json")
        backend = make_backend(checkpoint=checkpoint, watchdog_s=60)
        await backend.start()
        async with asyncio.timeout(WAIT_S):
            await backend.wait_ready()
        up = Running(runner, backend, checkpoint)
        gate = Gate(tmp_path)
        Behaviour(gate=str(tmp_path)).save(checkpoint)
        await backend.reload()
        call = asyncio.create_task(up.outcome(1))
        await gate.entered()
        await backend.stop()
        assert await call is DrainingError
        assert await up.outcome(2) is DrainingError
        assert backend.unready_reason() == "The service is shutting down."
        gate.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(scenario(runner))
