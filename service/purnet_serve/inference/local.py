"""Predictions on this machine: one queue before one worker process per device."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from purnet_serve.errors import NotReadyError, ReloadError, StartupError
from purnet_serve.inference.backend import BackendStats, ModelInfo, Pixels, Prediction
from purnet_serve.inference.batcher import Batcher
from purnet_serve.inference.spawn import Launch, launch
from purnet_serve.inference.supervisor import Lane
from purnet_serve.inference.worker_handle import Leaving, Worker, WorkerEndError, WorkerSpec, load
from purnet_serve.observability.cpus import available_cpus, engine_threads
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.loop_lag import LoopLag
from purnet_serve.settings import Settings

log = logging.getLogger("service.backend")

PREDICTOR = "purnet.inference.factory:load_to_serve"
"""What a worker loads; a name, because this process never imports the model."""

STOPPING = "The service is shutting down."


class LocalBackend:
    """A `Backend`: the batcher before one `Lane` per device named in the settings."""

    def __init__(
        self,
        settings: Settings,
        metrics: InferenceMetrics,
        *,
        factory: str = PREDICTOR,
        launch: Launch = launch,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._factory = factory
        self._launch = launch
        self._lanes: list[Lane] = []
        self._batcher: Batcher | None = None
        self._lag: LoopLag | None = None
        self._model: ModelInfo | None = None
        self._stopping = False
        self._changed = asyncio.Event()
        self._reload_lock = asyncio.Lock()
        self._leaving = Leaving()
        self._reloading: asyncio.Task[ModelInfo] | None = None

    async def start(self) -> None:
        """Begin to bring the workers up; `wait_ready` tells when they are."""
        loop = asyncio.get_running_loop()
        self._batcher = Batcher(loop, self._settings.batch_wait_s, self._metrics)
        self._lanes = [
            Lane(
                spec,
                self._launch,
                self._batcher,
                self._metrics,
                self._leaving,
                canary_s=self._settings.canary_s,
                changed=self._on_change,
            )
            for spec in self._specs()
        ]
        self._batcher.takers.extend(self._lanes)
        self._metrics.watch(self.stats)
        self._lag = LoopLag(loop, self._metrics.loop_lag)
        self._lag.start()
        for lane in self._lanes:
            lane.start()

    async def wait_ready(self) -> None:
        """Return once every device has its worker.

        Raises `StartupError` when one refuses: a device that was demanded and is not there must
        not be made up for by the others, or by the CPU.
        """
        while not all(lane.worker is not None for lane in self._lanes):
            for lane in self._lanes:
                if lane.given_up is not None:
                    raise StartupError(lane.given_up)
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Fail every open ticket with `DrainingError`, then end the workers and reap them."""
        self._stopping = True
        self._on_change()
        if self._batcher is not None:
            self._batcher.close(STOPPING)
        if self._reloading is not None:
            if not self._reloading.cancelling():
                self._reloading.cancel()
            await asyncio.wait([self._reloading])
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._leaving.gone()
        if self._lag is not None:
            self._lag.stop()

    async def reload(self) -> ModelInfo:
        """Load the configured checkpoint beside the running one, check it, swap between batches.

        The new model comes up in worker processes of its own, through the same checks as at the
        start, so whatever is wrong with it cannot touch the running one. Needs the memory of both
        for as long as that takes. Raises `ReloadError` and changes nothing otherwise.
        """
        async with self._reload_lock:
            if self._stopping or self._batcher is None:
                raise ReloadError(STOPPING)
            self._reloading = asyncio.create_task(self._replace_workers(self._batcher))
            try:
                model = await self._reloading
            except asyncio.CancelledError:
                if self._stopping:
                    raise ReloadError(STOPPING) from None
                raise
            finally:
                self._reloading = None
                # Before another reload may need their memory.
                await self._leaving.gone()
            return model

    async def predict(self, pixels: Pixels, *, deadline_s: float) -> Prediction:
        """Queue one image and wait for its mask. See `Backend.predict`."""
        if self._batcher is None or self._model is None:
            raise NotReadyError(self.unready_reason() or "The model is being loaded.")
        if (trouble := self._trouble()) is not None:
            raise NotReadyError(trouble)
        size = self._model.input_size
        if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"{pixels.dtype} pixels of {pixels.shape}, not uint8 ({size}, {size}, 3)"
            )
        return await self._batcher.predict(pixels, deadline_s)

    def expect(self, images: int) -> None:
        """Announce images on their way here."""
        if self._batcher is not None:
            self._batcher.expect(images)

    @property
    def model(self) -> ModelInfo | None:
        """The model that answers now."""
        return self._model

    def unready_reason(self) -> str | None:
        """None when predictions can be made: some device has a worker, or will in a moment."""
        return STOPPING if self._stopping else self._trouble()

    def stats(self) -> BackendStats:
        """Snapshot of the queue; may be taken from any thread."""
        batcher = self._batcher
        capacity = self._settings.max_requests_in_flight
        if batcher is None:
            return BackendStats(0, 0, capacity, 0.0)
        return BackendStats(batcher.queued, batcher.in_flight, capacity, batcher.oldest_s)

    def _trouble(self) -> str | None:
        troubles = [lane.trouble for lane in self._lanes]
        if not troubles:
            return "The service is starting."
        return None if None in troubles else troubles[0]

    def _specs(self) -> list[WorkerSpec]:
        settings = self._settings
        devices = settings.device.split(",")
        threads = settings.engine_threads or engine_threads(len(devices), available_cpus())
        return [
            WorkerSpec(
                factory=self._factory,
                checkpoint=settings.checkpoint,
                device=device,
                max_batch=settings.max_batch,
                threads=threads,
                load_timeout_s=settings.load_timeout_s,
                watchdog_s=settings.watchdog_s,
            )
            for device in devices
        ]

    def _on_change(self) -> None:
        """A lane came up or went down: tell whoever waits for that."""
        if self._model is None:
            worker = next((lane.worker for lane in self._lanes if lane.worker is not None), None)
            if worker is not None:
                self._announce(worker.info)
        trouble = self._trouble()
        if trouble is not None and self._batcher is not None:
            self._batcher.give_up(trouble)
        self._metrics.ready(self.unready_reason() is None)
        self._changed.set()

    def _announce(self, model: ModelInfo) -> None:
        self._model = model
        self._metrics.model(model)
        for lane in self._lanes:
            lane.expected = model

    async def _replace_workers(self, batcher: Batcher) -> ModelInfo:
        fresh: list[Worker] = []
        try:
            model = await self._load_beside(fresh)
            batcher.hold()
            try:
                await asyncio.gather(*(lane.idle() for lane in self._lanes))
                if not all(worker.accepts for worker in fresh):
                    raise ReloadError("The new worker ended before it could take over.")
                for lane, worker in zip(self._lanes, fresh, strict=True):
                    lane.swap(worker)
                fresh.clear()
                self._announce(model)
            finally:
                batcher.resume()
        finally:
            for worker in fresh:
                self._leaving.dismiss(worker)
        return model

    async def _load_beside(self, fresh: list[Worker]) -> ModelInfo:
        """Bring up one worker per lane, into `fresh` as they come. Raises `ReloadError`."""
        for lane in self._lanes:
            try:
                fresh.append(await load(lane.spec, self._launch))
            except WorkerEndError as end:
                raise ReloadError(end.detail) from end
        model = fresh[0].info
        if any(worker.info.sha256 != model.sha256 for worker in fresh):
            raise ReloadError("The checkpoint file changed while it was being read.")
        if self._model is not None and model.input_size != self._model.input_size:
            raise ReloadError(
                f"The checkpoint takes images of {model.input_size} pixels a side, the running one "
                f"of {self._model.input_size}; restart the service to change that."
            )
        return model
