"""One device: the worker that serves it, and what happens when that worker fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import Any

import numpy as np

from purnet_serve.errors import NonFiniteError, WorkerError
from purnet_serve.inference.backend import Mask, ModelInfo, Prediction
from purnet_serve.inference.batcher import Batch, Batcher, Ticket
from purnet_serve.inference.limits import DeviceLimits
from purnet_serve.inference.protocol import Done, OutOfMemory
from purnet_serve.inference.shared_memory import copy_mask
from purnet_serve.inference.spawn import WorkerEndError
from purnet_serve.inference.worker_handle import Worker, WorkerSpec, check_version, load
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import DispatchReason, FailureKind, Outcome

log = logging.getLogger("purnet_serve.inference")

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
"""Between restarts that follow each other without an answer; the first restart does not wait."""
FAILED_AFTER = 5
"""Consecutive failures after which the device is reported as failed."""
RESTART_GRACE_S = 30.0
"""Longest restart during which the device still counts as ready: about what clients wait."""


def backoff_s(failures: int) -> float:
    """Seconds before a restart after so many failures in a row, which may be thousands."""
    seconds = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 2, 30))
    return seconds if failures > 1 else 0.0


class DeviceState(Enum):
    """What a supervisor does now. Whether the device counts as ready is `unready_reason`."""

    LOADING = auto()
    SERVING = auto()
    BACKING_OFF = auto()
    FAILED = auto()
    """The model was refused, or workers failed too often in a row. Attempts go on."""
    CLOSED = auto()


class DeviceSupervisor:
    """Runs batches on one device, through as many worker processes as that takes.

    A `BatchExecutor` for the batcher. Its lifecycle is one coroutine: start a worker, serve with it
    until it ends, back off, start again.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        batcher: Batcher,
        metrics: InferenceMetrics,
        *,
        reaping: set[asyncio.Task[Any]],
        on_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.state = DeviceState.LOADING
        self.unready_reason: str | None = "The model is being loaded."
        """Why no answer can be expected of this device; None while one can."""
        self.expected: ModelInfo | None = None
        """The model that every worker must turn out to have loaded; None: any."""
        self.worker: Worker | None = None
        """The worker that serves now."""
        self._batcher = batcher
        self._metrics = metrics
        self._reaping = reaping
        """Tasks that end when a worker process that was stopped is reaped."""
        self._health_check_s = spec.settings.health_check_s
        self._on_change = on_change
        self._loop = batcher.loop
        self._consecutive_failures = 0
        """Ends of workers with no answer in between, without those an image alone caused."""
        self._has_served = False
        self._limits = DeviceLimits(spec.settings.max_batch, streams=1)
        self._lifecycle: asyncio.Task[None] | None = None
        self._grace_timer: asyncio.TimerHandle | None = None
        self._health_check_timer: asyncio.TimerHandle | None = None
        self._last_batch_s = 0.0
        """When the device last became idle, on the loop's clock."""
        self.idle = asyncio.Event()
        """Set while no batch is on the device."""
        self.idle.set()

    # --- what the batcher sees

    @property
    def limit(self) -> int:
        """Most images of the next batch; 0 while none can be taken.

        Then there is no worker, it has no free buffer or stream, or an image must run alone.
        """
        worker = self.worker
        if worker is None or not worker.can_accept:
            return 0
        on_device = worker.in_flight
        streams_are_busy = worker.has_streams and len(on_device) >= self._limits.streams
        if streams_are_busy or any(batch.alone for batch in on_device):
            return 0
        return self._limits.max_batch

    @property
    def batches(self) -> int:
        """Batches on the device."""
        return 0 if self.worker is None else len(self.worker.in_flight)

    def submit(self, batch: Batch) -> None:
        """Run a batch."""
        if self.worker is None:
            raise RuntimeError("A batch was submitted to a device without a worker.")
        self.worker.run(batch)
        self.idle.clear()

    # --- what the backend does with it

    def start(self) -> None:
        """Begin to bring up a worker."""
        self._begin_lifecycle(None)

    def adopt(self, worker: Worker) -> None:
        """Serve with a worker that was loaded beside, from now on; the device must be idle.

        Ends what the lifecycle is at: serving with another worker, loading one, or backing off.
        """
        self._end_lifecycle()
        self._consecutive_failures = 0
        self._begin_serving(worker)
        self._begin_lifecycle(worker)

    def close(self) -> None:
        """Stop the worker, or end the attempt to load one."""
        self._end_lifecycle()
        self.state = DeviceState.CLOSED

    def _begin_lifecycle(self, worker: Worker | None) -> None:
        self._lifecycle = self._loop.create_task(self._run(worker))
        self._lifecycle.add_done_callback(self._on_lifecycle_end)

    def _on_lifecycle_end(self, lifecycle: asyncio.Task[None]) -> None:
        """It ends when it is cancelled; a fault of ours must not end it unseen."""
        if not lifecycle.cancelled() and (fault := lifecycle.exception()) is not None:
            log.critical("device given up", exc_info=fault, extra={"device": self.spec.device})
            self._end_lifecycle()
            self.state = DeviceState.FAILED
            self.unready_reason = f"The device was given up: {fault!r}"
            self.idle.set()
            self._on_change()

    def _end_lifecycle(self) -> None:
        self._cancel_timers()
        if self._lifecycle is not None:
            self._lifecycle.cancel()
            self._reaping.add(self._lifecycle)
        if self.worker is not None:
            self._reaping.add(self.worker.stop())
            self.worker = None

    # --- lifecycle

    async def _run(self, worker: Worker | None) -> None:
        """Serve with `worker`, then with one new worker after another, until cancelled."""
        while True:
            try:
                if worker is None:
                    self._enter(DeviceState.LOADING)
                    worker = await load(self.spec, expected=self.expected)
                    self._check_version(worker)
                    self._begin_serving(worker)
                end = await worker.serve(self._on_answer)
            except WorkerEndError as error:
                if self._has_served or error.failure is not FailureKind.REFUSED:
                    # A refusal at the start ends the service, which then says the reason itself.
                    self._log(logging.ERROR, "worker not loaded", error)
                self._metrics.failed(error.failure)
                self._count_failure(error)
            else:
                self._log(logging.ERROR, "worker lost", end)
                self._clean_up_after(worker, end)
            worker = None
            await self._back_off()

    def _check_version(self, worker: Worker) -> None:
        """Stop a worker that read another model than the one that answers meanwhile.

        Another device may have set that one while this worker was being loaded. Raises
        `WorkerEndError`.
        """
        try:
            check_version(worker.info, self.expected)
        except WorkerEndError:
            self._reaping.add(worker.stop())
            raise

    def _begin_serving(self, worker: Worker) -> None:
        self.worker = worker
        self.state = DeviceState.SERVING
        self._has_served = True
        self.unready_reason = None
        self._cancel_timers()
        self._health_check_timer = self._loop.call_later(self._health_check_s, self._check_if_idle)
        self._last_batch_s = self._loop.time()
        # From now on exactly this device: `auto` must not end on the CPU when a GPU is lost.
        self.spec = replace(self.spec, device=worker.info.device)
        # The worker before may have been stopped during a health check that nobody waits for.
        self.idle.set()
        self._log(logging.INFO, "worker up")
        self._metrics.worker_memory(self.spec.device, worker.resident_bytes, worker.device_bytes)
        self._limits = DeviceLimits(worker.max_batch, worker.streams)
        self._report_limits()
        self._batcher.wake()
        self._on_change()

    def _clean_up_after(self, worker: Worker, end: WorkerEndError) -> None:
        """Queue the unanswered images again, those that were running for one try each, alone."""
        self.worker = None
        self._cancel_timers()
        self._grace_timer = self._loop.call_later(RESTART_GRACE_S, self._on_long_restart)
        running = worker.running
        images_fault = bool(running) and all(batch.alone for batch in running)
        try:
            for batch in worker.in_flight:
                if batch.health_check:
                    self._metrics.health_check(ok=False)
                elif batch in running:
                    self._retry(batch, end)
                else:
                    self._batcher.requeue(ticket for ticket in batch.tickets if ticket.live)
        except Exception as error:
            # A fault of ours. How far this came is not known, so nobody is left to wait.
            for ticket in (ticket for batch in worker.in_flight for ticket in batch.tickets):
                ticket.resolve(WorkerError(f"The worker's end was mishandled: {error!r}"))
            raise
        self.idle.set()
        self._metrics.failed(end.failure)
        if images_fault:
            # The end before, which this image may have caused too, was counted.
            self._consecutive_failures = max(0, self._consecutive_failures - 1)
        else:
            self._count_failure(end)

    def _count_failure(self, end: WorkerEndError) -> None:
        self._consecutive_failures += 1
        reason = end.detail
        if end.failure is not FailureKind.REFUSED:
            if self._consecutive_failures < FAILED_AFTER:
                return
            reason = f"The worker failed {self._consecutive_failures} times in a row. {end.detail}"
        self.state = DeviceState.FAILED
        self.unready_reason = reason

    async def _back_off(self) -> None:
        self._enter(DeviceState.BACKING_OFF)
        self._on_change()
        await asyncio.sleep(backoff_s(self._consecutive_failures))
        self._metrics.restarted()

    def _enter(self, state: DeviceState) -> None:
        """A device that failed stays so, whatever is tried, until a worker serves again."""
        if self.state is not DeviceState.FAILED:
            self.state = state

    def _on_long_restart(self) -> None:
        if self.unready_reason is None:
            self.unready_reason = "The model is being loaded again, and that takes long."
            self._on_change()

    def _cancel_timers(self) -> None:
        for timer in (self._grace_timer, self._health_check_timer):
            if timer is not None:
                timer.cancel()

    def _log(self, level: int, event: str, end: WorkerEndError | None = None) -> None:
        fields = {"device": self.spec.device}
        if end is not None:
            fields |= {"reason": end.detail} | (
                {"traceback": end.traceback} if end.traceback else {}
            )
        if self.worker is not None:
            fields |= {"model": self.worker.info.version, "engine": self.worker.info.engine}
        log.log(level, event, extra=fields)

    # --- answers

    def _on_answer(self, batch: Batch, answer: Done | OutOfMemory, masks: Mask) -> None:
        worker = self.worker
        if worker is None:
            raise RuntimeError("A worker answered that serves no more.")
        if isinstance(answer, OutOfMemory):
            self._metrics.failed(FailureKind.OUT_OF_MEMORY)
            # The batch is no longer among those that run.
            self._limits.lower(images=len(batch), running=len(worker.running) + 1)
            self._report_limits()
            if not batch.health_check:
                self._retry(batch, None)
        elif batch.health_check:
            self._on_health_check(worker, batch, answer, masks)
        else:
            self._on_masks(worker, batch, answer, masks)
        if not worker.in_flight:
            self.idle.set()
            self._last_batch_s = self._loop.time()
        self._batcher.wake()

    def _on_masks(self, worker: Worker, batch: Batch, answer: Done, masks: Mask) -> None:
        """Give every ticket its own mask, copied out before the buffer is used again."""
        self._consecutive_failures = 0
        if self._limits.recover(images=len(batch), running=len(worker.running) + 1):
            self._report_limits()
        # Answered first, counted then: a batch whose answers fail half-way is counted when the
        # worker's end is handled.
        outcomes = [self._answer(slot, worker, batch, answer, masks) for slot in range(len(batch))]
        self._count_execution(batch, answer.infer_s)
        for outcome in outcomes:
            self._metrics.outcome(outcome)
        self._metrics.worker_memory(self.spec.device, worker.resident_bytes, worker.device_bytes)

    def _answer(
        self, slot: int, worker: Worker, batch: Batch, answer: Done, masks: Mask
    ) -> Outcome:
        ticket = batch.tickets[slot]
        if not answer.finite[slot]:
            self._metrics.failed(FailureKind.NON_FINITE)
            error = NonFiniteError("The network's output for this image is not a number.")
            return Outcome.NON_FINITE if ticket.resolve(error) else Outcome.ABANDONED
        if not ticket.live:
            return Outcome.ABANDONED
        prediction = Prediction(
            mask=copy_mask(masks[slot]),
            model=worker.info,
            queue_s=batch.started_s - ticket.queued_s,
            infer_s=answer.infer_s,
            batch_size=len(batch),
        )
        ticket.resolve(prediction)
        return Outcome.MASK

    def _retry(self, batch: Batch, end: WorkerEndError | None) -> None:
        """Queue images again; if their worker ended, each alone, and only once."""
        self._count_execution(batch, None)
        again = []
        for ticket in batch.tickets:
            outcome = Outcome.RETRIED
            if not ticket.live:
                outcome = Outcome.ABANDONED
            elif end is not None and ticket.alone:
                outcome = Outcome.FAILED
                ticket.resolve(WorkerError(f"The worker failed twice on this image. {end.detail}"))
            else:
                ticket.alone |= end is not None
                again.append(ticket)
            self._metrics.outcome(outcome)
        self._batcher.requeue(again)

    def _report_limits(self) -> None:
        self._metrics.limits(self.spec.device, self._limits.max_batch, self._limits.streams)

    def _count_execution(self, batch: Batch, infer_s: float | None) -> None:
        waits_s = [batch.started_s - ticket.queued_s for ticket in batch.tickets]
        self._metrics.executed(batch.reason, waits_s, infer_s)

    # --- health check: a device that fails while idle is noticed before a request needs it

    def _check_if_idle(self) -> None:
        now = self._loop.time()
        due_s = (now if self.batches else self._last_batch_s) + self._health_check_s
        if now >= due_s:
            self._send_health_check()
            due_s = now + self._health_check_s
        self._health_check_timer = self._loop.call_at(due_s, self._check_if_idle)

    def _send_health_check(self) -> None:
        if self.worker is None or not self.worker.can_accept:
            return
        size = self.worker.info.input_size
        pixels = np.full((size, size, 3), 128, np.uint8)
        now = self._loop.time()
        ticket = Ticket(0, pixels, now, now, self._loop.create_future(), health_check=True)
        self.submit(Batch((ticket,), DispatchReason.NOTHING_UPSTREAM, now))

    def _on_health_check(self, worker: Worker, batch: Batch, answer: Done, masks: Mask) -> None:
        self._consecutive_failures = 0
        self._metrics.health_check(ok=answer.finite[0])
        if answer.finite[0]:
            self._answer(0, worker, batch, answer, masks)
        else:
            worker.kill(FailureKind.NON_FINITE, "A plain grey image gave a non-finite mask.")
