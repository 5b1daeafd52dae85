"""What a server does at a cluster, with calls of Ray that the test answers."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorAlreadyExistsError

from purnet_serve.errors import InternalError, StartupError
from purnet_serve.inference.ray.cluster import REFUSED, RayTier
from purnet_serve.inference.ray.tier import AppStatus, ReplicaLostError
from purnet_serve.settings import Settings

FACTORY = "fake_predictor:load"
SETTINGS = Settings(backend="ray")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of Ray Serve. Put `taken` in front to have that many starts fail."""
    made: list[str] = []

    def start(**_: Any) -> None:
        made.append("start")
        if made[0] == "taken":
            del made[0]
            raise ActorAlreadyExistsError("The name SERVE_CONTROLLER_ACTOR is already taken.")

    module = "purnet_serve.inference.ray.cluster.serve"
    monkeypatch.setattr(f"{module}.start", start)
    monkeypatch.setattr(f"{module}.run_many", lambda *_, **__: made.append("run"))
    monkeypatch.setattr(RayTier, "_status", lambda _: None)
    return made


@pytest.fixture
def versions(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code versions of what was deployed."""
    found: list[str] = []

    def run(targets: Any, **_: Any) -> None:
        found.extend(target.target._bound_deployment.version for target in targets)

    monkeypatch.setattr("purnet_serve.inference.ray.cluster.serve.run_many", run)
    return found


def has(monkeypatch: pytest.MonkeyPatch, status: AppStatus | None) -> None:
    """What Ray Serve says of the application from now on."""
    monkeypatch.setattr(RayTier, "_status", lambda _: status)


@pytest.mark.anyio
async def test_several_servers_may_start_ray_serve_at_the_same_moment(calls: list[str]) -> None:
    calls.append("taken")
    await RayTier(SETTINGS, FACTORY).deploy()
    assert calls == ["start", "start", "run"]


@pytest.mark.anyio
async def test_a_ray_serve_that_cannot_be_started_ends_the_start(calls: list[str]) -> None:
    calls += ["taken", "taken"]
    with pytest.raises(StartupError, match="cannot deploy to Ray"):
        await RayTier(SETTINGS, FACTORY).deploy()
    assert "run" not in calls


@pytest.mark.anyio
async def test_ray_serve_is_told_what_is_deployed_so_that_the_same_again_changes_nothing(
    versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = RayTier(SETTINGS, FACTORY)
    await tier.deploy()
    has(monkeypatch, AppStatus(failed=False, running=True))
    await tier.deploy()
    await RayTier(SETTINGS.model_copy(update={"max_batch": 3}), FACTORY).deploy()
    first, again, other = versions
    assert first == again == tier.digest
    assert other != first


@pytest.mark.anyio
async def test_what_failed_is_deployed_as_another_version_the_same_for_every_server(
    versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = RayTier(SETTINGS, FACTORY)
    for message in ("no room", "no room", "no file"):
        has(monkeypatch, AppStatus(failed=True, message=message))
        await tier.deploy(failed=True)
    first, again, later = versions
    assert first == again
    assert len({tier.digest, first, later}) == 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("found", "failed"),
    [
        (AppStatus(failed=True, from_file=True), True),
        (AppStatus(failed=False, from_file=True), False),
        (AppStatus(failed=False), True),
    ],
)
async def test_what_somebody_else_deployed_meanwhile_is_left_alone(
    versions: list[str], monkeypatch: pytest.MonkeyPatch, found: AppStatus, failed: bool
) -> None:
    has(monkeypatch, found)
    await RayTier(SETTINGS, FACTORY).deploy(failed=failed)
    assert not versions


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (StatusCode.UNAVAILABLE, ReplicaLostError),
        (StatusCode.CANCELLED, ReplicaLostError),
        (StatusCode.INTERNAL, ReplicaLostError),
        *((code, InternalError) for code in REFUSED),
    ],
)
async def test_a_call_that_is_refused_is_told_from_a_replica_that_is_lost(
    code: StatusCode, error: type[Exception]
) -> None:
    class Handle:
        """Answers every call with what gRPC raises."""

        def remote(self, *_: Any) -> Handle:
            return self

        async def __anext__(self) -> Any:
            raise AioRpcError(code, Metadata(), Metadata())

    tier = RayTier(SETTINGS, FACTORY)
    tier._predict = Handle()
    with pytest.raises(error):
        await tier.predict(1.0, b"")


@pytest.mark.anyio
async def test_nothing_of_ray_goes_on_after_the_end() -> None:
    ended: list[str] = []

    class Handle:
        def __init__(self, name: str) -> None:
            self.name = name

        async def shutdown_async(self) -> None:
            ended.append(self.name)

    tier = RayTier(SETTINGS, FACTORY)
    tier._handle, tier._predict = Handle("describe"), Handle("predict")
    await tier.close()
    assert ended == ["describe", "predict"]


def test_ray_starts_nothing_by_itself_and_leaves_sigterm_alone() -> None:
    # In a process of its own: Ray reads that when it is imported, which other tests do first.
    lines = """
from purnet_serve.inference.ray.cluster import RayTier
from ray._private import auto_init_hook, ray_constants

assert not auto_init_hook.enable_auto_connect
assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", lines], env=environment, check=True)
