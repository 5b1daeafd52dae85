"""One device: the worker that serves it, and what happens when that worker fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from purnet_serve.errors import NonFiniteError, WorkerError
from purnet_serve.inference.backend import Mask, ModelInfo, Prediction
from purnet_serve.inference.batcher import Batch, Batcher, Ticket
from purnet_serve.inference.protocol import Done
from purnet_serve.inference.spawn import Launch
from purnet_serve.inference.worker_handle import Leaving, Worker, WorkerEndError, WorkerSpec, load
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import DispatchReason, FailureKind, Outcome

log = logging.getLogger("purnet_serve.inference")

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 30.0
"""Between restarts that follow each other without an answer; the first restart does not wait."""
HOPELESS_AFTER = 5
"""Ends in a row without an answer after which the lane no longer promises to come back."""
PATIENCE_S = 30.0
"""Longest restart during which the lane counts as good as back: about what clients wait."""
RECOVERY_BATCHES = 100
"""Batches without trouble after which one image more is tried again after out of memory."""


class Lane:
    """Runs batches on one device, through as many incarnations of its worker as that takes.

    A `Taker` for the batcher and the `Owner` of its worker.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        launch: Launch,
        batcher: Batcher,
        metrics: InferenceMetrics,
        leaving: Leaving,
        *,
        canary_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.trouble: str | None = "The model is being loaded."
        """Why no answer can be expected of this lane; None while there is hope."""
        self.given_up: str | None = None
        """Why the model does not come up here, and will not by trying once more: a first start
        ends with it. A restart that only takes long is `trouble` alone."""
        self.expected: ModelInfo | None = None
        """The model every incarnation must turn out to be; None: whatever comes."""
        self._launch = launch
        self._batcher = batcher
        self._metrics = metrics
        self._leaving = leaving
        self._canary_s = canary_s
        self._changed = changed
        self._loop = batcher.loop
        self._worker: Worker | None = None
        self._ceiling = spec.max_batch
        self._calm_batches = 0
        self._strikes = 0
        self._loading: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        """Of the next canary while there is a worker, of the next restart while there is none."""
        self._doubt_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # --- what the batcher sees

    @property
    def limit(self) -> int:
        """Most images of the next batch; 0 while there is no worker, or no room in it."""
        worker = self._worker
        if worker is None or not worker.accepts:
            return 0
        return min(self._ceiling, worker.max_batch)

    @property
    def batches(self) -> int:
        """Batches on the device."""
        return 0 if self._worker is None else self._worker.batches

    def take(self, batch: Batch) -> None:
        """Run a batch."""
        if self._worker is None:
            raise RuntimeError("A batch was given to a lane without a worker.")
        self._idle.clear()
        self._cancel_timer()
        self._worker.run(batch)

    # --- what the backend does with it

    @property
    def worker(self) -> Worker | None:
        """The incarnation that serves now."""
        return self._worker

    def start(self) -> None:
        """Begin to bring up a worker."""
        self._cancel_timer()
        self._loading = self._loop.create_task(self._load())

    async def idle(self) -> None:
        """Wait until no batch is on the device."""
        await self._idle.wait()

    def swap(self, worker: Worker) -> None:
        """Serve another model from now on; the lane must be idle."""
        self._cancel_timer()
        self._abandon_loading()
        if self._worker is not None:
            self._leaving.dismiss(self._worker)
        self._strikes = 0
        self._adopt(worker)

    async def close(self) -> None:
        """Dismiss the worker and end the attempt to load one."""
        self._cancel_timer()
        self._cancel_doubt()
        self._abandon_loading()
        # Let go of before the first wait: an end that comes meanwhile must not start another.
        worker, self._worker = self._worker, None
        if worker is not None:
            self._leaving.dismiss(worker)
        if self._abandoned:
            await asyncio.wait(self._abandoned)
        self._idle.set()

    # --- what its worker tells it

    def done(self, batch: Batch, answer: Done, masks: Mask) -> None:
        """Give every ticket its own mask, copied out before the slot is used again."""
        self._strikes = 0
        worker = self._worker
        if worker is None:
            raise RuntimeError("A worker answered that serves no more.")
        if batch.canary:
            self._metrics.canary(ok=answer.finite[0])
            if not answer.finite[0]:
                worker.kill(FailureKind.NON_FINITE, "A plain grey image gave a non-finite mask.")
            self._free()
            return
        self._recover(len(batch))
        # Answered first, counted then: what fails in between leaves the batch for `lost` to count.
        outcomes = [
            self._settle(ticket, worker.info, batch, answer, masks, slot)
            for slot, ticket in enumerate(batch.tickets)
        ]
        self._metrics.executed(batch, answer.infer_s)
        for outcome in outcomes:
            self._metrics.outcome(outcome)
        self._report_memory(worker)
        self._free()

    def out_of_memory(self, batch: Batch) -> None:
        """Half of it may fit: lower the ceiling and let the queue cut it anew."""
        self._metrics.executed(batch, None)
        self._metrics.failed(FailureKind.OUT_OF_MEMORY)
        self._ceiling = max(1, min(self._ceiling, len(batch) // 2))
        self._calm_batches = 0
        if self._worker is not None:
            self._metrics.ceiling(self._worker.info.device, self._ceiling)
        self._retry(batch.tickets)
        self._free()

    def lost(self, end: WorkerEndError, unfinished: tuple[Batch, ...]) -> None:
        """Start another worker; give what this one had a second, solitary chance."""
        self._log(logging.ERROR, "worker lost", end)
        self._worker = None
        self._metrics.failed(end.failure)
        self._cancel_timer()
        if self._doubt_timer is None:
            self._doubt_timer = self._loop.call_later(PATIENCE_S, self._doubt)
        images_fault = False
        if unfinished:
            running, *waiting = unfinished
            images_fault = not running.canary and all(ticket.alone for ticket in running.tickets)
            self._after_loss(running, end)
            for batch in waiting:
                self._batcher.requeue(ticket for ticket in batch.tickets if ticket.live)
        self._idle.set()
        if images_fault:
            # The end before, which may have been its doing too, was counted against the worker.
            self._strikes = max(0, self._strikes - 1)
        else:
            self._strike(end)
        self._restart_later()

    def _settle(
        self, ticket: Ticket, model: ModelInfo, batch: Batch, answer: Done, masks: Mask, slot: int
    ) -> Outcome:
        if not answer.finite[slot]:
            self._metrics.failed(FailureKind.NON_FINITE)
            detail = "The network's output for this image is not a number."
            return Outcome.NON_FINITE if ticket.fail(NonFiniteError(detail)) else Outcome.LATE
        if not ticket.live:
            return Outcome.LATE
        ticket.answer(
            Prediction(
                mask=masks[slot].copy(),
                model=model,
                queue_s=batch.started_s - ticket.queued_s,
                infer_s=answer.infer_s,
                batch_size=len(batch),
            )
        )
        return Outcome.MASK

    def _after_loss(self, batch: Batch, end: WorkerEndError) -> None:
        if batch.canary:
            self._metrics.canary(ok=False)
            return
        self._metrics.executed(batch, None)
        second_chance = []
        for ticket in batch.tickets:
            if not ticket.alone:
                ticket.alone = True
                second_chance.append(ticket)
            else:
                gone = f"The worker failed twice on this image. {end.detail}"
                failed = ticket.fail(WorkerError(gone))
                self._metrics.outcome(Outcome.FAILED if failed else Outcome.LATE)
        self._retry(second_chance)

    def _retry(self, tickets: Iterable[Ticket]) -> None:
        again = []
        for ticket in tickets:
            self._metrics.outcome(Outcome.RETRIED if ticket.live else Outcome.LATE)
            if ticket.live:
                again.append(ticket)
        self._batcher.requeue(again)

    def _recover(self, images: int) -> None:
        """Out of memory may have been a neighbour's fault: creep back up after a calm while."""
        worker = self._worker
        if worker is None or self._ceiling >= worker.max_batch or images < self._ceiling:
            return
        self._calm_batches += 1
        if self._calm_batches == RECOVERY_BATCHES:
            self._calm_batches = 0
            self._ceiling += 1
            self._metrics.ceiling(worker.info.device, self._ceiling)

    def _report_memory(self, worker: Worker) -> None:
        memory = worker.memory
        self._metrics.worker_memory(worker.info.device, memory.resident, memory.device)

    def _free(self) -> None:
        if self.batches == 0:
            self._idle.set()
            self._plan_canary()
        self._batcher.wake()

    # --- restarts

    async def _load(self) -> None:
        try:
            worker = await load(self.spec, self._launch)
            expected = self.expected
            if expected is not None and worker.info.sha256 != expected.sha256:
                self._leaving.dismiss(worker)
                await worker.gone()
                raise WorkerEndError(
                    FailureKind.REFUSED,
                    f"The checkpoint file is no longer {expected.version} but "
                    f"{worker.info.version}: reload to take it.",
                )
        except WorkerEndError as end:
            self._log(logging.ERROR, "worker not loaded", end)
            self._loading = None
            self._metrics.failed(end.failure)
            self._strike(end)
            self._restart_later()
            return
        self._loading = None
        self._adopt(worker)

    def _adopt(self, worker: Worker) -> None:
        self._worker = worker
        worker.owner = self
        self._cancel_doubt()
        self.trouble = self.given_up = None
        # From now on exactly this device: `auto` must not end on the CPU when a GPU is lost.
        self.spec = replace(self.spec, device=worker.info.device)
        self._ceiling = worker.max_batch
        self._calm_batches = 0
        # The one before may have been sent off with a canary that nobody waits for.
        self._idle.set()
        self._log(logging.INFO, "worker up")
        self._report_memory(worker)
        self._metrics.ceiling(worker.info.device, self._ceiling)
        self._plan_canary()
        self._batcher.wake()
        self._changed()

    def _abandon_loading(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            self._abandoned.add(self._loading)
            self._loading.add_done_callback(self._abandoned.discard)
            self._loading = None

    def _strike(self, end: WorkerEndError) -> None:
        """Count an end that no answer came before and no image alone is to blame for."""
        self._strikes += 1
        if end.failure is FailureKind.REFUSED:
            self.trouble = self.given_up = end.detail
        elif self._strikes >= HOPELESS_AFTER:
            times = f"{self._strikes} times in a row"
            self.trouble = self.given_up = f"The worker failed {times}. {end.detail}"

    def _restart_later(self) -> None:
        """The first time at once, then after longer and longer."""
        delay_s = 0.0
        if self._strikes > 1:
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (self._strikes - 2))
        self._timer = self._loop.call_later(delay_s, self._restart)
        self._changed()

    def _cancel_doubt(self) -> None:
        if self._doubt_timer is not None:
            self._doubt_timer.cancel()
            self._doubt_timer = None

    def _doubt(self) -> None:
        if self.trouble is None:
            self.trouble = "The model is being loaded again, and that takes long."
            self._changed()

    def _restart(self) -> None:
        self._metrics.restarted()
        self.start()

    def _log(self, level: int, event: str, end: WorkerEndError | None = None) -> None:
        worker = self._worker
        told = {"device": self.spec.device}
        if end is not None:
            told["reason"] = end.detail
            if end.trace:
                told["trace"] = end.trace
        if worker is not None:
            told |= {"model": worker.info.version, "engine": worker.info.engine}
        log.log(level, event, extra=told)

    # --- canary

    def _plan_canary(self) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(self._canary_s, self._send_canary)

    def _send_canary(self) -> None:
        """A device that died in its sleep is found before a request finds it."""
        worker = self._worker
        if worker is None or worker.batches or not worker.accepts:
            return
        size = worker.info.input_size
        pixels = np.full((size, size, 3), 128, np.uint8)
        now = self._loop.time()
        ticket = Ticket(0, pixels, now, now, self._loop.create_future())
        self.take(Batch((ticket,), DispatchReason.NOTHING_UPSTREAM, now, canary=True))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
