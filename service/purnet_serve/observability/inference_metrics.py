"""Every Prometheus series of what happens behind the door: queue, batches, workers, model.

Label values are closed sets, created at 0; devices are added as their workers come up.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from purnet_serve.inference.backend import BackendStats, ModelInfo
from purnet_serve.inference.batcher import Batch
from purnet_serve.observability.labels import DispatchReason, FailureKind, Outcome, TicketLocation

_QUEUE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_INFERENCE_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class CheckResult(StrEnum):
    """How a canary or a reload ended."""

    OK = "ok"
    FAILED = "failed"


class InferenceMetrics:
    """Queue, batches and workers, as the batcher, the lanes and the backend report them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._is_draining = False
        self._depth = Gauge("purnet_queue_depth", "Images waiting for a device.", registry=registry)
        self._in_flight = Gauge(
            "purnet_queue_in_flight",
            "Images waiting for an answer, in the queue or on a device.",
            registry=registry,
        )
        self._capacity = Gauge(
            "purnet_queue_capacity", "Images that may wait for an answer.", registry=registry
        )
        self._oldest = Gauge(
            "purnet_queue_oldest_seconds",
            "Age of the oldest image in the queue.",
            registry=registry,
        )
        self._queue_wait = Histogram(
            "purnet_queue_wait_seconds",
            "Time from the queue's door to the start of the batch, by execution.",
            buckets=_QUEUE_BUCKETS_S,
            registry=registry,
        )
        self._inference = Histogram(
            "purnet_inference_seconds",
            "Time of a batch in its worker.",
            buckets=_INFERENCE_BUCKETS_S,
            registry=registry,
        )
        self._batch_size = Histogram(
            "purnet_batch_size",
            "Images of each batch a worker began; the sum counts executions.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._batches = _counter(
            registry,
            "purnet_batches",
            "Batches begun, by why they left the queue.",
            "reason",
            DispatchReason,
        )
        self._outcomes = _counter(
            registry,
            "purnet_executions",
            "Executed images by outcome; all but `retried` are answers.",
            "outcome",
            Outcome,
        )
        self._expired = _counter(
            registry,
            "purnet_expired",
            "Deadlines that passed, by where the image was.",
            "place",
            TicketLocation,
        )
        self._cancelled = _counter(
            registry,
            "purnet_cancelled",
            "Clients that went away, by where the image was.",
            "place",
            TicketLocation,
        )
        self._failures = _counter(
            registry,
            "purnet_failures",
            "Failures of workers, batches and images.",
            "kind",
            FailureKind,
        )
        self._restarts = Counter(
            "purnet_worker_restarts", "Workers started after another's end.", registry=registry
        )
        self._canaries = _counter(
            registry, "purnet_canaries", "Checks of idle workers, by result.", "result", CheckResult
        )
        self._reloads = _counter(
            registry,
            "purnet_reloads",
            "Attempts to change the model, by result.",
            "result",
            CheckResult,
        )
        self._ready = Gauge("purnet_ready", "1 while predictions can be made.", registry=registry)
        self._draining = Gauge("purnet_draining", "1 once shutdown has begun.", registry=registry)
        self._lag = Histogram(
            "purnet_event_loop_lag_seconds",
            "By how much the event loop's regular turns were late.",
            buckets=_LAG_BUCKETS_S,
            registry=registry,
        )
        self._ceiling = Gauge(
            "purnet_max_batch", "Largest batch a worker takes now.", ["device"], registry=registry
        )
        self._resident = Gauge(
            "purnet_worker_resident_bytes",
            "Memory a worker process has in RAM.",
            ["device"],
            registry=registry,
        )
        self._device = Gauge(
            "purnet_worker_device_bytes",
            "Memory a worker holds on its device.",
            ["device"],
            registry=registry,
        )
        self._model = Info("purnet_model", "The model that answers now.", registry=registry)
        Info("purnet_build", "The running code.", registry=registry).info(
            {"version": _version(), "python": platform.python_version()}
        )

    def watch(self, stats: Callable[[], BackendStats]) -> None:
        """Read the queue's state at every scrape, from whichever thread serves it."""
        self._depth.set_function(lambda: stats().queued)
        self._in_flight.set_function(lambda: stats().in_flight)
        self._capacity.set_function(lambda: stats().capacity)
        self._oldest.set_function(lambda: stats().oldest_s)

    def expired(self, place: TicketLocation) -> None:
        """A deadline passed."""
        self._expired.labels(place).inc()

    def cancelled(self, place: TicketLocation) -> None:
        """A client went away."""
        self._cancelled.labels(place).inc()

    def executed(self, batch: Batch, infer_s: float | None) -> None:
        """A worker was done with a batch, in `infer_s` seconds or without an answer."""
        self._batch_size.observe(len(batch))
        self._batches.labels(batch.reason).inc()
        for ticket in batch.tickets:
            self._queue_wait.observe(max(0.0, batch.started_s - ticket.queued_s))
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

    def canary(self, *, ok: bool) -> None:
        """An idle worker was checked."""
        self._canaries.labels(CheckResult.OK if ok else CheckResult.FAILED).inc()

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

    def ceiling(self, device: str, images: int) -> None:
        """The largest batch a device takes now."""
        self._ceiling.labels(device).set(images)

    def model(self, model: ModelInfo) -> None:
        """These weights answer from now on."""
        self._model.info(
            {
                "name": model.name,
                "sha256": model.sha256,
                "engine": model.engine,
                "input_size": str(model.input_size),
            }
        )


def _counter(
    registry: CollectorRegistry, name: str, text: str, label: str, words: type[StrEnum]
) -> Counter:
    """A counter by one closed set of words, each of them there from the start."""
    counter = Counter(name, text, [label], registry=registry)
    for word in words:
        counter.labels(word)
    return counter


def _version() -> str:
    try:
        return importlib.metadata.version("purnet-serve")
    except importlib.metadata.PackageNotFoundError:
        return "source"
