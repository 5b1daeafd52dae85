"""The metrics of a model replica, published through Ray, which exports them on each node.

Every sample of an ordinary registry becomes a gauge of Ray's with the sample's name, labels and
value. Ray's own counters and histograms would not do: it keeps only the buckets of a histogram and
makes up its sum from their middles, a batch of one image counts as half an image; a counter has no
series before its first event, and the series of a replica that ended stay for ever. Prometheus
computes rates and quantiles from names and labels, whatever type a metric is said to have.

Ray prefixes the names with `ray_` and adds labels of its own; `docker/prometheus.yml` undoes both.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry, disable_created_metrics
from ray.util.metrics import Gauge

from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.process_metrics import watch_process

log = logging.getLogger("purnet_serve.inference")

REPLICA = "replica"
"""Label with the name of the replica; Prometheus makes `instance` of it."""
PUBLISH_INTERVAL_S = 2.0
"""Ray sends on what it was given every 10 s by default (`metrics_report_interval_ms`)."""


class RayGauge(Protocol):
    """What is used of `ray.util.metrics.Gauge`."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Replace the value of one series."""


Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample, and its labels with their values."""


class ReplicaMetrics:
    """The series of one model replica: those of inference, and those of its process.

    A thread of its own publishes them, so that they stay true while the event loop is stuck.
    """

    def __init__(
        self,
        replica: str,
        *,
        make_gauge: Callable[[str, str, tuple[str, ...]], RayGauge] = Gauge,
    ) -> None:
        # Otherwise each counter and histogram has a second series with the time it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=True)
        watch_process(self._registry)
        self.inference = InferenceMetrics(self._registry)
        self._replica = replica
        self._make_gauge = make_gauge
        self._gauges: dict[str, RayGauge] = {}
        self._published: set[Series] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replica-metrics", daemon=True)

    def start(self) -> None:
        """Begin to publish, at once and then every `PUBLISH_INTERVAL_S`."""
        self._thread.start()

    def stop(self) -> None:
        """Publish once more, and then no longer."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def publish(self) -> None:
        """Give Ray the value that every series has now."""
        found: set[Series] = set()
        for metric in self._registry.collect():
            for sample in metric.samples:
                series = (sample.name, tuple(sample.labels.items()))
                self._set(series, sample.value, metric.documentation)
                found.add(series)
        # Ray would go on to export the last value of a series that is gone, as the one that named
        # the model before a reload.
        for series in self._published - found:
            self._set(series, 0.0, "")
        self._published = found

    def _set(self, series: Series, value: float, text: str) -> None:
        name, labels = series
        gauge = self._gauges.get(name)
        if gauge is None:
            keys = (REPLICA, *(label for label, _ in labels))
            gauge = self._gauges[name] = self._make_gauge(name, text, keys)
        gauge.set(value, {REPLICA: self._replica, **dict(labels)})

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.is_set()
            try:
                self.publish()
            except Exception:
                # As a scrape that fails does: the next one may not.
                log.exception("metrics not published")
            if not stopping:
                self._stopping.wait(PUBLISH_INTERVAL_S)
