"""What a server does at a cluster, with calls of Ray that the test answers."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorAlreadyExistsError

from purnet_serve.errors import StartupError
from purnet_serve.inference.ray.cluster import RayTier
from purnet_serve.settings import Settings


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
    return made


@pytest.mark.anyio
async def test_several_servers_may_start_ray_serve_at_the_same_moment(calls: list[str]) -> None:
    calls.append("taken")
    await RayTier(Settings(on="ray"), "fake_predictor:load").deploy()
    assert calls == ["start", "start", "run"]


@pytest.mark.anyio
async def test_a_ray_serve_that_cannot_be_started_ends_the_start(calls: list[str]) -> None:
    calls += ["taken", "taken"]
    with pytest.raises(StartupError, match="cannot deploy to Ray"):
        await RayTier(Settings(on="ray"), "fake_predictor:load").deploy()
    assert "run" not in calls
