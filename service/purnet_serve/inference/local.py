"""Predictions on this machine: one queue before one worker process per device."""

from __future__ import annotations

import asyncio
from typing import Any

from purnet.cpus import available_cpus
from purnet_serve.errors import NotReadyError, ReloadError, StartupError
from purnet_serve.inference.backend import (
    ModelInfo,
    Pixels,
    Prediction,
    Throughput,
    combine,
    side_of,
)
from purnet_serve.inference.batcher import Batcher
from purnet_serve.inference.spawn import Spawn, WorkerEndError, spawn
from purnet_serve.inference.supervisor import DeviceState, DeviceSupervisor
from purnet_serve.inference.worker_handle import Worker, WorkerSpec, load
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.loop_lag import LoopLag
from purnet_serve.settings import Settings

PREDICTOR = "purnet.inference.factory:load_to_serve"
"""What a worker loads; a name, because this process never imports the model."""

STOPPING = "The service is shutting down."


class LocalBackend:
    """A `Backend`: the batcher before one `DeviceSupervisor` per device named in the settings."""

    def __init__(
        self,
        settings: Settings,
        metrics: InferenceMetrics,
        *,
        factory: str = PREDICTOR,
        spawn: Spawn = spawn,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._factory = factory
        self._spawn = spawn
        self._devices: list[DeviceSupervisor] = []
        self._reaping: set[asyncio.Task[Any]] = set()
        """Tasks that end when a worker process that was stopped is reaped."""
        self._batcher: Batcher | None = None
        self._lag: LoopLag | None = None
        self._model: ModelInfo | None = None
        self._throughput: Throughput | None = None
        self._stopping = False
        self._changed = asyncio.Event()
        self._reload_lock = asyncio.Lock()
        self._reloading: asyncio.Task[ModelInfo] | None = None

    async def start(self) -> None:
        """Begin to bring the workers up; `wait_ready` returns when they answer."""
        settings, metrics = self._settings, self._metrics
        loop = asyncio.get_running_loop()
        batcher = self._batcher = Batcher(loop, settings.batch_wait_s, metrics)
        names = settings.device.split(",")
        threads = settings.engine_threads or max(1, available_cpus() // len(names))
        for name in names:
            spec = WorkerSpec(settings, self._factory, name, threads, self._spawn)
            device = DeviceSupervisor(
                spec, batcher, metrics, reaping=self._reaping, on_change=self._on_change
            )
            self._devices.append(device)
            batcher.executors.append(device)
        metrics.watch(
            queued=lambda: batcher.queued,
            in_flight=lambda: batcher.in_flight,
            oldest_s=lambda: batcher.oldest_s,
            capacity=settings.max_requests_in_flight,
        )
        self._lag = LoopLag(loop, metrics.loop_lag)
        self._lag.start()
        for device in self._devices:
            device.start()

    async def wait_ready(self) -> None:
        """Return once every device has its worker.

        Raises `StartupError` when one refuses: a device that was demanded and is not there must
        not be replaced by the others, or by the CPU.
        """
        while not all(device.worker for device in self._devices):
            for device in self._devices:
                if device.state is DeviceState.FAILED:
                    raise StartupError(device.unready_reason)
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
        for device in self._devices:
            device.close()
        await self._all_reaped()
        if self._lag is not None:
            self._lag.stop()

    async def reload(self) -> ModelInfo:
        """Load the configured checkpoint beside the running one, check it, swap between batches.

        The new model comes up in worker processes of its own, through the same checks as at the
        start. Needs the memory of both for as long as that takes. See `Backend.reload`.
        """
        async with self._reload_lock:
            if self._stopping or self._batcher is None:
                raise ReloadError(STOPPING)
            self._reloading = asyncio.create_task(self._replace_workers(self._batcher))
            try:
                return await self._reloading
            except asyncio.CancelledError:
                if self._stopping:
                    raise ReloadError(STOPPING) from None
                raise
            finally:
                self._reloading = None
                # Before another reload may need their memory.
                await self._all_reaped()

    async def predict(
        self, pixels: Pixels, *, deadline_s: float, health_check: bool = False
    ) -> Prediction:
        """Queue one image and wait for its mask. See `Backend.predict`.

        A health check is a batch of its own and in no counter of images.
        """
        reason = self._devices_unready_reason()
        if self._batcher is None or self._model is None or reason is not None:
            raise NotReadyError(reason or "The model is being loaded.")
        if side_of(pixels) != self._model.input_size:
            raise ValueError(f"an image of {pixels.shape}, not of {self._model.input_size} pixels")
        return await self._batcher.predict(pixels, deadline_s, health_check=health_check)

    def expect(self, images: int) -> None:
        """Announce images on their way here."""
        if self._batcher is not None:
            self._batcher.expect(images)

    @property
    def model(self) -> ModelInfo | None:
        """The model that answers now."""
        return self._model

    @property
    def throughput(self) -> Throughput | None:
        """How fast the devices that have a worker are, or were when one had."""
        return self._throughput

    def unready_reason(self) -> str | None:
        """None when predictions can be made: some device has a worker, or will in a moment."""
        return STOPPING if self._stopping else self._devices_unready_reason()

    @property
    def queued(self) -> int:
        """Images that wait for a device now."""
        return 0 if self._batcher is None else self._batcher.queued

    def _devices_unready_reason(self) -> str | None:
        reasons = [device.unready_reason for device in self._devices]
        if not reasons:
            return "The service is starting."
        return None if None in reasons else reasons[0]

    def _on_change(self) -> None:
        """A device came up or went down: tell whoever depends on that."""
        workers = [device.worker for device in self._devices if device.worker is not None]
        if workers:
            self._throughput = combine([worker.throughput for worker in workers])
            if self._model is None:
                self._set_model(workers[0].info)
        reason = self._devices_unready_reason()
        if reason is not None and self._batcher is not None:
            self._batcher.fail_queued(reason)
        self._metrics.ready(self.unready_reason() is None)
        self._changed.set()

    async def _all_reaped(self) -> None:
        """Wait until all workers that were stopped are reaped; they are, if this is cancelled."""
        while self._reaping:
            done, _ = await asyncio.wait(self._reaping)
            self._reaping -= done

    def _set_model(self, model: ModelInfo) -> None:
        self._model = model
        self._metrics.model(
            name=model.name, sha256=model.sha256, engine=model.engine, input_size=model.input_size
        )
        for device in self._devices:
            device.expected = model

    async def _replace_workers(self, batcher: Batcher) -> ModelInfo:
        loaded: list[Worker] = []
        try:
            model = await self._load_beside(loaded)
            batcher.pause()
            try:
                await asyncio.gather(*(device.idle.wait() for device in self._devices))
                if not all(worker.can_accept for worker in loaded):
                    raise ReloadError("The new worker ended before it could take over.")
                for device, worker in zip(self._devices, loaded, strict=True):
                    device.adopt(worker)
                loaded.clear()
                self._set_model(model)
            finally:
                batcher.resume()
        finally:
            self._reaping.update(worker.stop() for worker in loaded)
        return model

    async def _load_beside(self, loaded: list[Worker]) -> ModelInfo:
        """Bring up one worker per device, into `loaded` as they come. Raises `ReloadError`."""
        for device in self._devices:
            try:
                loaded.append(await load(device.spec))
            except WorkerEndError as end:
                raise ReloadError(end.detail) from end
        model = loaded[0].info
        if any(worker.info.sha256 != model.sha256 for worker in loaded):
            raise ReloadError("The checkpoint file changed while it was being read.")
        if self._model is not None and model.input_size != self._model.input_size:
            raise ReloadError(
                f"The checkpoint takes images of {model.input_size} pixels a side, the running one "
                f"of {self._model.input_size}; restart the service to change that."
            )
        return model
