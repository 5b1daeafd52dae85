"""Predictions on a Ray cluster: a `Backend` over model replicas that many servers share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from purnet_serve.errors import (
    BusyError,
    DeadlineError,
    DrainingError,
    NotReadyError,
    ReloadError,
    ServiceError,
    StartupError,
)
from purnet_serve.inference.backend import (
    ModelInfo,
    Pixels,
    Prediction,
    Throughput,
    combine,
    side_of,
)
from purnet_serve.inference.ray.messages import (
    OtherVersionError,
    ReplicaState,
    unpack_state,
)
from purnet_serve.inference.ray.retries import predict_with_retries
from purnet_serve.inference.ray.tier import (
    AppStatus,
    ModelTier,
    NoReplicaError,
    TierFullError,
    UnreachableError,
)
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import TicketLocation
from purnet_serve.observability.loop_lag import LoopLag
from purnet_serve.settings import Settings

log = logging.getLogger("purnet_serve.inference.ray")

REFRESH_S = 5.0
"""Between two questions to the replicas how they are, if nothing says that they changed."""
MIN_REFRESH_S = 0.5
"""The same at least, whatever says that they changed, and while none has answered yet."""
GRACE_S = 30.0
"""How long no replica may answer before requests are refused, or no cluster at a start."""

STOPPING = "The service is shutting down."
LOADING = "The model is being loaded."


class RayBackend:
    """A `Backend`: the replicas of a `ModelTier`."""

    def __init__(self, settings: Settings, metrics: InferenceMetrics, tier: ModelTier) -> None:
        self._settings = settings
        self._metrics = metrics
        self._tier = tier
        self._model: ModelInfo | None = None
        self._throughput: Throughput | None = None
        self._reason: str | None = "The service is starting."
        self._message = ""
        """Why nothing may be up yet, during the start."""
        self._silent_since_s: float | None = None
        """When no replica could predict any more, on the loop's clock; None while one can."""
        self._started = asyncio.Event()
        self._failure: StartupError | None = None
        """Why the start failed, once `_started` is set."""
        self._open: set[asyncio.Timeout] = set()
        """The time limits of the calls that wait for an answer."""
        self._stopping = False
        self._refresh_now = asyncio.Event()
        """Set when something says that the replicas have changed."""
        self._watch: asyncio.Task[None] | None = None
        self._lag: LoopLag | None = None
        self._reload_lock = asyncio.Lock()

    async def start(self) -> None:
        """Begin to join the cluster and to deploy; `wait_ready` returns when a replica answers."""
        loop = asyncio.get_running_loop()
        self._metrics.watch(
            queued=lambda: self.queued,
            in_flight=lambda: len(self._open),
            # Images wait at the replicas, which report it. The age of a call counts computing too.
            oldest_s=lambda: 0.0,
            capacity=self._settings.max_requests_in_flight,
        )
        self._lag = LoopLag(loop, self._metrics.loop_lag)
        self._lag.start()
        self._watch = asyncio.create_task(self._bring_up_and_watch())

    async def wait_ready(self) -> None:
        """Return once a replica answers, one that this server deployed if it deployed any.

        However long it takes: a cluster may first have to find machines. What Ray Serve says of it
        meanwhile is in `unready_reason`. Raises `StartupError` when no such replica can be had.
        """
        await self._started.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Fail every open call with `DrainingError` and leave the cluster."""
        self._stopping = True
        self._metrics.ready(False)
        loop = asyncio.get_running_loop()
        try:
            for limit in tuple(self._open):
                if not limit.expired():  # or its call ends by itself, with its own error
                    limit.reschedule(loop.time())
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.wait([self._watch])
        finally:
            if self._lag is not None:
                self._lag.stop()
            await self._tier.close()

    async def reload(self) -> ModelInfo:
        """Have the replicas read the checkpoint again, one first, then all others.

        The first refusal changes nothing. The others may refuse too, if their machines have another
        file: then `ReloadError` says how many replicas run which weights. While it lasts both
        versions answer, and each answer names its own.
        """
        async with self._reload_lock:
            if self._stopping or self._model is None:
                raise ReloadError(STOPPING if self._stopping else LOADING)
            try:
                (first,) = await self._tier.reload(None, all_replicas=False)
                if first["refused"] is not None:
                    raise ReloadError(first["refused"])
                model = unpack_state(first).model
                digest = None if model is None else model.sha256
                answers = await self._tier.reload(digest, all_replicas=True)
                states = [unpack_state(answer) for answer in answers]
            except (NoReplicaError, UnreachableError, OtherVersionError) as error:
                raise ReloadError(f"The replicas did not all answer: {error}") from error
            self._update(states, LOADING)
            versions = Counter(state.model.version for state in states if state.model is not None)
            if model is None or len(versions) != 1:
                found = ", ".join(f"{count} run {name}" for name, count in versions.items())
                refused = {answer["refused"] for answer in answers} - {None}
                raise ReloadError(f"The replicas differ: {found}. {' '.join(sorted(refused))}")
            return model

    async def predict(self, pixels: Pixels, *, deadline_s: float) -> Prediction:
        """Send one image to a replica and wait for its mask. See `Backend.predict`.

        Its `queue_s` includes the way to the replica and back. Also raises `BusyError` when the
        replicas and the queue before them are full.
        """
        reason = self.unready_reason()
        if self._model is None or reason is not None:
            kind = DrainingError if self._stopping else NotReadyError
            raise kind(reason or LOADING)
        if side_of(pixels) != self._model.input_size:
            # It was decoded for the model before.
            raise NotReadyError("The model now takes images of another size.")
        now = asyncio.get_running_loop().time()
        if deadline_s <= now:
            self._metrics.expired(TicketLocation.QUEUE)
            raise DeadlineError("The deadline passed before the image was sent to a replica.")
        limit = asyncio.timeout_at(deadline_s)
        try:
            async with limit:
                self._open.add(limit)
                prediction = await predict_with_retries(
                    self._tier,
                    pixels.tobytes(),
                    deadline_s=deadline_s,
                    on_change=self._refresh_now.set,
                )
                # However busy the replicas are, they answer.
                self._silent_since_s = None
                took_s = asyncio.get_running_loop().time() - now
                return replace(prediction, queue_s=max(0.0, took_s - prediction.infer_s))
        except TierFullError as error:
            raise self._busy() from error
        except TimeoutError:
            if self._stopping:
                raise DrainingError(STOPPING) from None
            self._metrics.expired(TicketLocation.DEVICE)
            raise DeadlineError("The deadline passed while the image was at a replica.") from None
        finally:
            self._open.discard(limit)

    def expect(self, images: int) -> None:
        """Nothing: which replica an image will go to is not known while it is decoded."""

    @property
    def model(self) -> ModelInfo | None:
        """The model of most replicas, as they were last seen."""
        return self._model

    @property
    def throughput(self) -> Throughput | None:
        """How fast all replicas are together, or were when there were some."""
        return self._throughput

    @property
    def queued(self) -> int:
        """Images of this server beyond those that the devices of all replicas hold."""
        return max(
            0, len(self._open) - (0 if self._throughput is None else self._throughput.concurrency)
        )

    def unready_reason(self) -> str | None:
        """None when predictions can be made: some replica is there, or will be in a moment."""
        return STOPPING if self._stopping else self._reason

    def _busy(self) -> ServiceError:
        interval_s = 0.0 if self._throughput is None else self._throughput.interval_s
        return BusyError(
            "All model replicas are full, and so is the queue before them.",
            retry_after_s=max(1, math.ceil(len(self._open) * interval_s)),
        )

    async def _bring_up_and_watch(self) -> None:
        try:
            await self._tier.connect()
            await self._bring_up()
        except StartupError as error:
            self._fail(error)
            return
        except Exception as error:
            # Whatever it is, whoever waits for the start must hear of it.
            log.exception("start failed")
            self._fail(StartupError(f"The cluster cannot be used: {error!r}"))
            return
        self._started.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S - MIN_REFRESH_S):
                    await self._refresh_now.wait()
            self._refresh_now.clear()
            try:
                await self._refresh()
            except Exception:
                # Whatever it is, the next round may go well.
                log.exception("replicas not seen")
            await asyncio.sleep(MIN_REFRESH_S)

    async def _bring_up(self) -> None:
        """Deploy unless the same runs already; return when a replica can predict."""
        self._reason = LOADING
        while True:
            status, digests = await self._observe()
            if self._may_deploy(status, digests):
                await self._tier.deploy(failed=status is not None and status.failed)
                await self._wait_for_own_replica()
                return
            if self._model is not None:
                return
            await asyncio.sleep(MIN_REFRESH_S)

    async def _wait_for_own_replica(self) -> None:
        """Return when a replica of this server's deployment can predict.

        Replicas of the one before answer meanwhile.
        """
        loop = asyncio.get_running_loop()
        others_since_s: float | None = None
        while True:
            status, digests = await self._observe()
            if status is None:
                raise StartupError("The application was deleted while its replicas started.")
            if status.failed:
                raise StartupError(status.reason)
            if self._model is not None and self._tier.digest in digests:
                return
            if self._model is None or not status.running:
                others_since_s = None
            elif others_since_s is None:
                others_since_s = loop.time()
            elif loop.time() - others_since_s >= REFRESH_S:
                log.error("replicas are those of another server, which deployed other settings")
                return
            await asyncio.sleep(MIN_REFRESH_S)

    def _may_deploy(self, status: AppStatus | None, digests: set[str | None]) -> bool:
        """Whether to deploy, given what the replicas that run were deployed from.

        What a config file deployed stays: who wrote the file decides what runs. Replicas of this
        server's settings among others are an update that goes on.
        """
        if not self._settings.ray_deploy:
            return False
        if status is None:
            return True
        if status.from_file or self._tier.digest in digests:
            return False
        return bool(digests - {None}) or (status.failed and not digests)

    async def _observe(self) -> tuple[AppStatus | None, set[str | None]]:
        """The application, and what its replicas were deployed from. Raises `StartupError`."""
        loop = asyncio.get_running_loop()
        began_s, digests = loop.time(), set[str | None]()
        while True:
            try:
                status = await self._tier.status()
                if status is not None:
                    with contextlib.suppress(NoReplicaError):
                        await self._tier.attach()
                        digests = await self._refresh()
                break
            except UnreachableError as error:
                if loop.time() - began_s >= GRACE_S:
                    raise StartupError(f"The cluster does not answer: {error}") from error
                log.warning("cluster not reached", extra={"reason": str(error)})
                await asyncio.sleep(MIN_REFRESH_S)
        message = "Nothing is deployed yet." if status is None else status.reason
        if message not in ("", self._message):
            log.info("deploying", extra={"status": message})
        self._message = message
        if self._model is None:
            self._reason = f"{LOADING} {message}".rstrip()
        return status, digests

    async def _refresh(self) -> set[str | None]:
        """Ask the replicas how they are; gives what they were deployed from, see `ReplicaState`."""
        described: list[dict[str, Any]] = []
        reason = "There is no model replica."
        with contextlib.suppress(NoReplicaError):
            try:
                described = await self._tier.describe()
            except UnreachableError as error:
                # Replicas may be too busy to say how they are, and answer images nevertheless.
                log.warning("replicas not seen", extra={"reason": str(error)})
                reason = "No model replica says how it is."
        states: list[ReplicaState] = []
        for values in described:
            try:
                states.append(unpack_state(values))
            except OtherVersionError as error:
                reason = str(error)
        self._update(states, reason)
        return {values.get("deployed") for values in described}

    def _update(self, states: Iterable[ReplicaState], reason: str) -> None:
        """Take over what the replicas say; `reason` is what is wrong when none can predict."""
        ready_states = []
        for state in states:
            if state.model is not None and state.throughput is not None and state.reason is None:
                ready_states.append((state.model, state.throughput))
            else:
                reason = state.reason or LOADING
        now = asyncio.get_running_loop().time()
        if ready_states:
            self._throughput = combine([throughput for _, throughput in ready_states])
            versions = Counter(model for model, _ in ready_states)
            if len(versions) > 1:
                found = {model.version: count for model, count in versions.items()}
                log.warning("replicas differ", extra={"models": found})
            ((model, _),) = versions.most_common(1)
            if model != self._model:
                self._set_model(model)
            self._silent_since_s, self._reason = None, None
        elif self._model is not None:
            if self._silent_since_s is None:
                self._silent_since_s = now
            if now - self._silent_since_s >= GRACE_S:
                self._reason = reason
        self._metrics.ready(self.unready_reason() is None)

    def _set_model(self, model: ModelInfo) -> None:
        self._model = model
        self._metrics.model(
            name=model.name, sha256=model.sha256, engine=model.engine, input_size=model.input_size
        )

    def _fail(self, error: StartupError) -> None:
        self._failure = error
        self._reason = str(error)
        self._metrics.ready(False)
        self._started.set()
