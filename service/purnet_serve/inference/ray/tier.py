"""The model tier as `RayBackend` sees it: replicas somewhere that answer images. No Ray here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from purnet_serve.inference.ray.messages import Message


class ReplicaLostError(Exception):
    """A replica ended, or cannot be reached, after it had accepted an image."""


class TierFullError(Exception):
    """Every replica holds as many images as it may, and so does the queue before them."""


class NoReplicaError(Exception):
    """There is no replica now."""


class UnreachableError(Exception):
    """The cluster does not answer."""


@dataclass(frozen=True, slots=True)
class AppStatus:
    """What Ray Serve says of the application."""

    failed: bool
    """It could not be deployed; Ray Serve has given up."""
    message: str = ""
    running: bool = False
    """All its replicas are as the last deployment says."""
    from_file: bool = False
    """A config file deployed it, so whoever wrote that file decides what runs."""

    @property
    def reason(self) -> str:
        """The last line of the message, which may hold a traceback; empty if there is none."""
        line = self.message.strip().rpartition("\n")[2]
        if self.failed and not line:
            return "The deployment failed."
        return line.partition("StartupError: ")[2] or line


class ModelTier(Protocol):
    """What `RayBackend` needs of the replicas, all together. All coroutines run on its loop."""

    async def connect(self) -> None:
        """Join the cluster, or start one. Raises `StartupError`."""

    async def status(self) -> AppStatus | None:
        """None when there is no such application. Raises `UnreachableError`."""

    async def deploy(self, *, failed: bool = False) -> None:
        """Deploy the application, in the place of one that runs. Raises `StartupError`.

        To deploy again what is deployed changes nothing, unless `failed`: then it is tried again.
        What a config file deployed is left alone.
        """

    async def attach(self) -> None:
        """Get hold of the application's replicas, which need not be up.

        Raises `NoReplicaError` when there is nothing to get hold of yet, or `UnreachableError`.
        """

    @property
    def digest(self) -> str:
        """`deployed_digest` of what `deploy` would deploy."""

    async def predict(self, left_s: float, pixels: bytes) -> Message:
        """Send an image to a replica that has room, and wait for its answer.

        Cancelling the call cancels the image. Raises `ReplicaLostError`, `TierFullError`,
        `NoReplicaError`, or `InternalError` for a fault of the replica's code.
        """

    async def describe(self) -> list[dict[str, Any]]:
        """The packed `ReplicaState` of every running replica that answers within a few seconds.

        Raises `NoReplicaError` when there is none, or `UnreachableError` when none answers.
        """

    async def reload(self, sha256: str | None, *, all_replicas: bool) -> list[dict[str, Any]]:
        """Have one replica or all of them read the checkpoint again; see `ModelReplica.reload`.

        Raises `NoReplicaError` or `UnreachableError`.
        """

    async def close(self) -> None:
        """Leave the cluster, or end the one that `connect` started."""
