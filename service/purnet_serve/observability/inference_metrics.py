"""The Prometheus series of queue, batches, workers and model.

Label values are closed sets, created at 0; devices are added as their workers come up.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from enum import StrEnum
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from purnet_serve.observability.labels import (
    CheckResult,
    DispatchReason,
    FailureKind,
    Outcome,
    TicketLocation,
)

_QUEUE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_INFERENCE_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class InferenceMetrics:
    """Queue, batches and workers, as batcher, supervisors and backend report them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._is_draining = False

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, label: str, values: type[StrEnum]) -> Counter:
            made = Counter(name, text, [label], registry=registry)
            for value in values:
                made.labels(value)
            return made

        self._depth = gauge("purnet_queue_depth", "Images waiting for a device.")
        self._in_flight = gauge(
            "purnet_queue_in_flight", "Images waiting for an answer, in the queue or on a device."
        )
        self._capacity = gauge("purnet_queue_capacity", "Images that may wait for an answer.")
        self._oldest = gauge("purnet_queue_oldest_seconds", "Age of the oldest image in the queue.")
        text = "Time from entering the queue to the start of the batch, by execution."
        self._queue_wait = histogram("purnet_queue_wait_seconds", text, _QUEUE_BUCKETS_S)
        text = "Time of a batch in its worker."
        self._inference = histogram("purnet_inference_seconds", text, _INFERENCE_BUCKETS_S)
        text = "Images of each batch a worker began; the sum counts executions."
        self._batch_size = histogram("purnet_batch_size", text, _BATCH_BUCKETS)
        text = "Batches begun, by why they left the queue."
        self._batches = counter("purnet_batches", text, "reason", DispatchReason)
        text = "Executed images by outcome; `mask`, `non_finite` and `failed` are answers."
        self._outcomes = counter("purnet_executions", text, "outcome", Outcome)
        text = "Deadlines that passed, by where the image was."
        self._expired = counter("purnet_expired", text, "place", TicketLocation)
        text = "Clients that went away, by where the image was."
        self._cancelled = counter("purnet_cancelled", text, "place", TicketLocation)
        text = "Failures of workers, batches and images."
        self._failures = counter("purnet_failures", text, "kind", FailureKind)
        text = "Workers started after another's end."
        self._restarts = Counter("purnet_worker_restarts", text, registry=registry)
        text = "Health checks of workers, by result."
        self._health_checks = counter("purnet_health_checks", text, "result", CheckResult)
        text = "Reloads; `failed` if the model or the API keys were refused."
        self._reloads = counter("purnet_reloads", text, "result", CheckResult)
        self._ready = gauge("purnet_ready", "1 while predictions can be made.")
        self._draining = gauge("purnet_draining", "1 once shutdown has begun.")
        text = "By how much the event loop's regular turns were late."
        self._lag = histogram("purnet_event_loop_lag_seconds", text, _LAG_BUCKETS_S)
        self._max_batch = gauge("purnet_max_batch", "Largest batch a worker takes now.", "device")
        text = "Batches a worker runs at the same time now."
        self._streams = gauge("purnet_streams", text, "device")
        text = "Memory a worker process has in RAM."
        self._resident = gauge("purnet_worker_resident_bytes", text, "device")
        text = "Memory a worker holds on its device."
        self._device = gauge("purnet_worker_device_bytes", text, "device")
        self._model = Info("purnet_model", "The model that answers now.", registry=registry)
        Info("purnet_build", "The running code.", registry=registry).info(
            {"version": version("purnet-serve"), "python": platform.python_version()}
        )

    def watch(
        self,
        *,
        queued: Callable[[], float],
        in_flight: Callable[[], float],
        oldest_s: Callable[[], float],
        capacity: int,
    ) -> None:
        """Read the queue's state at every scrape, from whichever thread serves it."""
        self._depth.set_function(queued)
        self._in_flight.set_function(in_flight)
        self._oldest.set_function(oldest_s)
        self._capacity.set(capacity)

    def expired(self, location: TicketLocation) -> None:
        """A deadline passed."""
        self._expired.labels(location).inc()

    def cancelled(self, location: TicketLocation) -> None:
        """A client went away."""
        self._cancelled.labels(location).inc()

    def executed(
        self, reason: DispatchReason, waits_s: Iterable[float], infer_s: float | None
    ) -> None:
        """A worker was done with a batch, in `infer_s` seconds or without an answer.

        `waits_s` has one entry per image: the seconds it spent in the queue.
        """
        images = 0
        for wait_s in waits_s:
            self._queue_wait.observe(max(0.0, wait_s))
            images += 1
        self._batch_size.observe(images)
        self._batches.labels(reason).inc()
        if infer_s is not None:
            self._inference.observe(infer_s)

    def outcome(self, outcome: Outcome) -> None:
        """The execution of one image ended."""
        self._outcomes.labels(outcome).inc()

    def failed(self, failure: FailureKind) -> None:
        """A worker, a batch or an image failed."""
        self._failures.labels(failure).inc()

    def restarted(self) -> None:
        """A worker is started after another's end."""
        self._restarts.inc()

    def health_check(self, *, ok: bool) -> None:
        """A worker was checked."""
        self._health_checks.labels(CheckResult.OK if ok else CheckResult.FAILED).inc()

    def reloaded(self, *, ok: bool) -> None:
        """A reload ended."""
        self._reloads.labels(CheckResult.OK if ok else CheckResult.FAILED).inc()

    def ready(self, ready: bool) -> None:
        """Whether predictions can be made; a service that drains stays not ready."""
        self._ready.set(ready and not self._is_draining)

    def begin_draining(self) -> None:
        """Shutdown has begun: draining, and not ready, from now on."""
        self._is_draining = True
        self._draining.set(1)
        self._ready.set(0)

    def loop_lag(self, lag_s: float) -> None:
        """The event loop's regular turn came `lag_s` seconds late."""
        self._lag.observe(lag_s)

    def worker_memory(self, device: str, resident_bytes: int, device_bytes: int) -> None:
        """What the worker on a device holds; the process collector sees only this process."""
        self._resident.labels(device).set(resident_bytes)
        self._device.labels(device).set(device_bytes)

    def limits(self, device: str, max_batch: int, streams: int) -> None:
        """The largest batch a device takes now, and how many it runs at the same time."""
        self._max_batch.labels(device).set(max_batch)
        self._streams.labels(device).set(streams)

    def model(self, *, name: str, sha256: str, engine: str, input_size: int) -> None:
        """These weights answer from now on."""
        self._model.info(
            {"name": name, "sha256": sha256, "engine": engine, "input_size": str(input_size)}
        )
