"""Model replicas without Ray: a test says what each call and each question to them comes to."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from purnet_serve.errors import StartupError
from purnet_serve.inference.backend import ModelInfo, Prediction, Throughput
from purnet_serve.inference.ray.messages import (
    Message,
    ReplicaState,
    pack_prediction,
    pack_state,
    unpack_pixels,
)
from purnet_serve.inference.ray.tier import AppStatus, NoReplicaError, UnreachableError

SIZE = 4
DIGEST = "what this server would deploy"


def model(digit: str = "a", size: int = SIZE) -> ModelInfo:
    return ModelInfo("fake", digit * 64, size, "cpu", "fake")


def state(digit: str = "a", deployed: str | None = DIGEST, **fields: Any) -> ReplicaState:
    return replace(ReplicaState(deployed, model(digit), Throughput(0.2, 0.1, 2), None), **fields)


def answer(pixels: bytes, digit: str = "a") -> Message:
    """The mask is the red channel."""
    mask = np.ascontiguousarray(unpack_pixels(pixels)[..., 0])
    return pack_prediction(Prediction(mask, model(digit), 0.01, 0.02, 1))


class FakeTier:
    """Implements `ModelTier`. Calls wait for the test unless `outcomes` has something for them."""

    def __init__(self) -> None:
        self.digest = DIGEST
        self.app: AppStatus | None = None
        self.states: list[ReplicaState | dict[str, Any]] = []
        self.after_deploy: list[ReplicaState | dict[str, Any]] = [state()]
        """What the replicas are once `deploy` was called."""
        self.deployed_as = AppStatus(failed=False)
        self.deployments = 0
        self.importing = False
        """Whether Ray Serve knows the application by name alone."""
        self.unreached: UnreachableError | None = None
        """What the cluster answers to everything but images."""
        self.refreshes = 0
        self.refuses: StartupError | None = None
        self.unseen: Exception | None = None
        """What asking the replicas how they are raises."""
        self.outcomes: deque[Message | Exception] = deque()
        self.calls: list[tuple[float, bytes, asyncio.Future[Message]]] = []
        self.reloads: list[tuple[str | None, bool]] = []
        self.reload_answers: deque[list[dict[str, Any]] | Exception] = deque()
        self.closed = False

    async def connect(self) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def status(self) -> AppStatus | None:
        if self.unreached is not None:
            raise self.unreached
        return self.app

    async def deploy(self, *, failed: bool = False) -> None:
        assert failed == (self.app is not None and self.app.failed)
        self.deployments += 1
        self.app = self.deployed_as
        self.states = self.after_deploy

    async def attach(self) -> None:
        assert self.app is not None
        if self.importing:
            raise NoReplicaError("does not exist")

    async def predict(self, left_s: float, pixels: bytes) -> Message:
        call = asyncio.get_running_loop().create_future()
        self.calls.append((left_s, pixels, call))
        if self.outcomes:
            outcome = self.outcomes.popleft()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return await call

    async def describe(self) -> list[dict[str, Any]]:
        self.refreshes += 1
        if self.unseen is not None:
            raise self.unseen
        if not self.states:
            raise NoReplicaError("none")
        return [pack_state(one) if isinstance(one, ReplicaState) else one for one in self.states]

    async def reload(self, sha256: str | None, *, all_replicas: bool) -> list[dict[str, Any]]:
        self.reloads.append((sha256, all_replicas))
        answers = self.reload_answers.popleft()
        if isinstance(answers, Exception):
            raise answers
        return answers

    async def close(self) -> None:
        self.closed = True
