"""A model replica without Ray, with the real worker process of a fake network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_predictor import FACTORY, Act, Behaviour, image, number_in
from gate import Gate

from purnet_serve.errors import (
    DeadlineError,
    NonFiniteError,
    NotReadyError,
    ServiceError,
    StartupError,
    WorkerError,
)
from purnet_serve.inference.backend import Prediction
from purnet_serve.inference.ray import replica as replica_module
from purnet_serve.inference.ray.application import replica_settings
from purnet_serve.inference.ray.messages import PROTOCOL, unpack_answer, unpack_state
from purnet_serve.inference.ray.replica import ModelReplica
from purnet_serve.settings import Settings

LONG_S = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def in_ray_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics have the name that Ray Serve gave it; what they publish goes nowhere."""
    context = SimpleNamespace(replica_tag="a1")
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)


@asynccontextmanager
async def running(checkpoint: Path, **settings: Any) -> AsyncIterator[ModelReplica]:
    """A replica as Ray Serve makes and ends it."""
    arguments = replica_settings(Settings(backend="ray", checkpoint=checkpoint, **settings))
    replica = ModelReplica.__new__(ModelReplica)
    await replica.__init__(arguments, deployed="digest", factory=FACTORY)  # type: ignore[misc]
    try:
        yield replica
    finally:
        ending = replica.__del__()
        assert ending is not None
        await ending
        assert replica.__del__() is None, "the collector of garbage calls it once more"


async def send(
    replica: ModelReplica, number: int, act: Act = Act.NOTHING, left_s: float = LONG_S
) -> Prediction | ServiceError:
    pixels = image(number, act).tobytes()
    (message,) = [one async for one in replica.predict(PROTOCOL, left_s, pixels)]
    return unpack_answer(message)


def executions(replica: ModelReplica) -> float:
    return (
        replica._metrics._registry.get_sample_value("purnet_executions_total", {"outcome": "mask"})
        or 0.0
    )


@pytest.mark.anyio
async def test_it_answers_images_and_says_what_it_is(checkpoint: Path) -> None:
    async with running(checkpoint) as replica:
        answers = await asyncio.gather(*(send(replica, number) for number in range(20)))
        found = [number_in(one.mask) for one in answers if isinstance(one, Prediction)]
        assert found == list(range(20))
        state = unpack_state(await replica.describe())
        assert (state.deployed, state.reason) == ("digest", None)
        assert state.model == answers[0].model  # type: ignore[union-attr]
        assert state.throughput is not None
        before = executions(replica)
        await replica.check_health()
        assert executions(replica) == before == 20, "a check is no image"
    assert unpack_state(await replica.describe()).reason == "The service is shutting down."


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("act", "left_s", "kind"),
    [
        (Act.KILL, LONG_S, WorkerError),
        (Act.NON_FINITE, LONG_S, NonFiniteError),
        (Act.NOTHING, 0.0, DeadlineError),
    ],
)
async def test_errors_are_values(
    checkpoint: Path, act: Act, left_s: float, kind: type[ServiceError]
) -> None:
    async with running(checkpoint) as replica:
        assert type(await send(replica, 1, act, left_s)) is kind


def test_the_environment_of_its_node_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURNET_RAY_GPUS", "1")
    monkeypatch.setenv("PURNET_HEALTH_CHECK_S", "7")
    sent = replica_module.ReplicaSettings(device="cpu")
    assert (sent.ray_gpus, sent.health_check_s) == (0, 30)


@pytest.mark.anyio
async def test_another_protocol_and_another_size_are_told_apart(checkpoint: Path) -> None:
    async with running(checkpoint) as replica:
        assert [one async for one in replica.predict(PROTOCOL + 1, 1.0, b"")] == [
            ("version", PROTOCOL)
        ]
        for pixels in (image(1, size=32).tobytes(), b"no square"):
            (message,) = [one async for one in replica.predict(PROTOCOL, LONG_S, pixels)]
            assert isinstance(unpack_answer(message), NotReadyError)


@pytest.mark.anyio
async def test_a_replica_without_a_worker_does_not_look_like_the_least_busy(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_s: list[float] = []

    async def hold(seconds: float) -> None:
        held_s.append(seconds)

    async with running(checkpoint) as replica:
        replica._backend._model = None  # as before the first load, which a replica does not serve
        monkeypatch.setattr(replica_module.asyncio, "sleep", hold)
        for left_s in (LONG_S, 0.5):
            assert isinstance(await send(replica, 1, left_s=left_s), NotReadyError)
        monkeypatch.undo()
    assert held_s == [replica_module.GIVE_BACK_S, 0.25]


@pytest.mark.anyio
async def test_a_start_that_is_refused_raises_the_reason_and_leaves_nothing(
    checkpoint: Path,
) -> None:
    Behaviour(refuse="There is no device cuda:7 here.").save(checkpoint)
    with pytest.raises(StartupError, match="no device cuda:7"):
        async with running(checkpoint):
            pass


@pytest.mark.anyio
async def test_a_reload_takes_the_file_that_is_there_now_unless_it_runs_already(
    checkpoint: Path,
) -> None:
    async with running(checkpoint) as replica:
        Behaviour(name="next").save(checkpoint)
        answer = await replica.reload(None)
        taken = unpack_state(answer).model
        assert taken is not None
        assert (taken.name, answer["refused"]) == ("next", None)
        checkpoint.write_text("rubbish")
        answer = await replica.reload(taken.sha256)
        assert (unpack_state(answer).model, answer["refused"]) == (taken, None)
        answer = await replica.reload(None)
        assert unpack_state(answer).model == taken
        assert answer["refused"] == "fake.json is not a checkpoint."


@pytest.mark.anyio
async def test_a_stuck_replica_is_unhealthy_and_one_that_moves_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "HEALTH_S", 0.2)
    gate = Gate(tmp_path)
    checkpoint = Behaviour(gate=str(tmp_path)).save(tmp_path / "fake.json")
    async with running(checkpoint, max_batch=1, watchdog_s=60) as replica:
        first = asyncio.create_task(send(replica, 1))
        await gate.entered()
        with pytest.raises(DeadlineError):
            await replica.check_health()
        second = asyncio.create_task(send(replica, 2))
        check = asyncio.create_task(replica.check_health())
        gate.leave()
        await first  # an answer, while the check's image still waits behind the second
        await gate.entered()
        await check
        gate.leave()
        await second
    gate.close()
