"""A model replica: what Ray Serve runs, wherever it finds room, behind every server's handle.

It holds a `LocalBackend` with one device, so the batcher, the supervisor and the worker process are
those of a single machine, and with them batches, streams, retries and restarts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

import numpy as np
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from purnet_serve.errors import DeadlineError, NotReadyError, ReloadError, ServiceError
from purnet_serve.inference.local import PREDICTOR, LocalBackend
from purnet_serve.inference.ray.messages import (
    PROTOCOL,
    Message,
    ReplicaState,
    pack_error,
    pack_prediction,
    pack_state,
    unpack_pixels,
)
from purnet_serve.observability.logging import configure_logging
from purnet_serve.settings import Settings

HEALTH_S = 15.0
"""Seconds that a health check's image may take if no other is answered meanwhile."""

GIVE_BACK_S = 1.0
"""Seconds that a replica without a worker keeps an image before it gives it back. Images go to the
replica that holds the fewest: if it gave them back at once, all would come to it first.
"""

log = logging.getLogger("purnet_serve.inference.ray")


class ReplicaSettings(Settings):
    """Those that were sent: what the environment of a node says is for the servers there."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Of all sources only the arguments."""
        return (init_settings,)


class ModelReplica:
    """One replica. Ray Serve calls it; its own loop runs everything."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        settings: Mapping[str, Any],
        *,
        deployed: str | None = None,
        factory: str = PREDICTOR,
    ) -> None:
        """Return when the worker answers. Raises `StartupError`."""
        self._running = False
        # Here, because whoever only writes a config file imports this module without Ray.
        from ray.serve import get_replica_context

        from purnet_serve.inference.ray.metrics import ReplicaMetrics

        chosen = ReplicaSettings(**settings)
        configure_logging(chosen)
        self._metrics = ReplicaMetrics(get_replica_context().replica_tag)
        self._deployed = deployed
        self._answers = 0
        self._backend = LocalBackend(chosen, self._metrics.inference, factory=factory)
        await self._backend.start()
        self._metrics.start()
        try:
            await self._backend.wait_ready()
        except BaseException:
            await self.stop()
            raise
        self._running = True

    async def predict(self, protocol: int, left_s: float, pixels: bytes) -> AsyncIterator[Message]:
        """Queue one image; the only item is its answer.

        A stream of one item, because Ray Serve tells the server when a stream has begun: so the
        server knows whether a replica that died had accepted the image. `pixels` are (S, S, 3)
        uint8 in C order, `left_s` the seconds that the client still waits.
        """
        if protocol != PROTOCOL:
            yield ("version", PROTOCOL)
            return
        deadline_s = asyncio.get_running_loop().time() + left_s
        try:
            image = unpack_pixels(pixels)
            prediction = await self._backend.predict(image, deadline_s=deadline_s)
        except ServiceError as error:
            if isinstance(error, NotReadyError):
                await asyncio.sleep(min(GIVE_BACK_S, left_s / 2))
            yield pack_error(error)
        except ValueError:
            # The server decoded for the model before.
            yield pack_error(NotReadyError("The model now takes images of another size."))
        else:
            self._answers += 1
            yield pack_prediction(prediction)

    async def describe(self) -> dict[str, Any]:
        """Its `ReplicaState`."""
        backend = self._backend
        state = ReplicaState(
            self._deployed, backend.model, backend.throughput, backend.unready_reason()
        )
        return pack_state(state)

    async def reload(self, sha256: str | None) -> dict[str, Any]:
        """Read the checkpoint again, unless the one with this digest answers already.

        Gives the state afterwards; `refused` in it is why the checkpoint was not taken.
        """
        refused, model = None, self._backend.model
        if model is None or model.sha256 != sha256:
            try:
                info = await self._backend.reload()
                log.info("reloaded", extra={"model": info.version})
            except ReloadError as error:
                refused = str(error)
                log.error("reload refused", extra={"reason": refused})
        return {**await self.describe(), "refused": refused}

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises several times in a row.

        An image goes the way of all others: through the queue, the pipe and the device. It is a
        health check, so it is in no counter of images. The worker is never idle for so long that it
        is sent another.
        """
        model = self._backend.model
        if model is None:
            raise NotReadyError("No model is loaded.")
        size, answers = model.input_size, self._answers
        grey = np.full((size, size, 3), 128, np.uint8)
        try:
            deadline_s = asyncio.get_running_loop().time() + HEALTH_S
            await self._backend.predict(grey, deadline_s=deadline_s, health_check=True)
        except DeadlineError:
            # A queue may be longer than that; it is healthy while it moves.
            if self._answers == answers:
                raise

    async def stop(self) -> None:
        """End the worker; what is still queued gets `DrainingError`."""
        await self._backend.stop()
        await asyncio.to_thread(self._metrics.stop)

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Ray Serve calls this after the last answer and awaits what it gives; then Python does."""
        if not self._running:
            return None
        self._running = False
        return self.stop()
