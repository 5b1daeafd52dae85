"""Every Prometheus series, over its own registry. Label values are a closed set, created at 0.

`DoorMetrics` describes requests (door), `InferenceMetrics` what happens behind it (queue, workers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from purnet_serve.errors import tree
from purnet_serve.http.admission import Admission
from purnet_serve.http.request import STAGES, TIMED, Exchange
from purnet_serve.images.thread_pool import MemoryBudget
from purnet_serve.observability.inference_metrics import InferenceMetrics

OTHER = "other"
"""Label of every path and method that is not ours, so that no stranger can make a series."""

STATUSES = ("200", *sorted({str(kind.status) for kind in tree()}), OTHER)

# A cached 404 to an inference that waited for its turn.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BYTES = tuple(1024.0 * 4**power for power in range(1, 9))
MEGAPIXELS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 40.0)


class DoorMetrics:
    """Requests as clients see them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._methods: dict[str, frozenset[str]] = {}
        self._requests = Counter(
            "purnet_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "purnet_request_seconds",
            "Seconds from the first header to the last byte of the answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "purnet_stage_seconds",
            "Seconds of a mask request by stage.",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "purnet_refusals",
            "Requests answered with an error, by its code.",
            ("reason",),
            registry=registry,
        )
        self._gone = Counter(
            "purnet_client_gone",
            "Requests whose client went away before the answer, by stage.",
            ("stage",),
            registry=registry,
        )
        self._body_bytes = Histogram(
            "purnet_body_bytes", "Bytes of image uploads.", buckets=BYTES, registry=registry
        )
        self._megapixels = Histogram(
            "purnet_image_megapixels",
            "Megapixels of decoded images.",
            buckets=MEGAPIXELS,
            registry=registry,
        )
        self._requests_in_flight = Gauge(
            "purnet_requests_in_flight", "Admitted requests not yet answered.", registry=registry
        )
        self._bytes_in_flight = Gauge(
            "purnet_bytes_in_flight", "Bytes of uploads held or reserved.", registry=registry
        )
        self._answer_bytes = Gauge(
            "purnet_answer_bytes", "Bytes of answers being encoded or sent.", registry=registry
        )
        self._pixel_bytes = Gauge(
            "purnet_pixel_bytes",
            "Bytes of decoded pixels that threads at work may hold.",
            registry=registry,
        )
        for part in TIMED:
            self._stage_seconds.labels(part)
        for stage in STAGES:
            self._gone.labels(stage)
        for kind in tree():
            self._errors.labels(kind.code)

    def register(self, routes: Mapping[str, Iterable[str]]) -> None:
        """Create every series of these routes, each a path template with its methods."""
        self._methods = {path: frozenset(methods) for path, methods in routes.items()}
        for path, methods in {**self._methods, OTHER: frozenset[str]()}.items():
            self._request_seconds.labels(path)
            for method in (*methods, OTHER):
                for status in STATUSES:
                    self._requests.labels(path, method, status)

    def watch(self, admission: Admission, answers: MemoryBudget, pixels: MemoryBudget) -> None:
        """Read the gauges off what counts anyway."""
        self._requests_in_flight.set_function(lambda: admission.requests)
        self._bytes_in_flight.set_function(lambda: admission.bytes)
        self._answer_bytes.set_function(lambda: answers.reserved_bytes)
        self._pixel_bytes.set_function(lambda: pixels.reserved_bytes)

    def route(self, path: str) -> str:
        """The label for a path: itself when it is a route of ours."""
        return path if path in self._methods else OTHER

    def answered(self, exchange: Exchange, seconds: float) -> None:
        """Count an exchange that is over; one without an answer counts by its stage instead."""
        if exchange.gone:
            self._gone.labels(exchange.stage).inc()
            return
        route = self.route(exchange.path)
        methods = self._methods.get(route, frozenset())
        method = exchange.method if exchange.method in methods else OTHER
        status = str(exchange.status) if str(exchange.status) in STATUSES else OTHER
        self._requests.labels(route, method, status).inc()
        self._request_seconds.labels(route).observe(seconds)
        if exchange.code is not None:
            self._errors.labels(exchange.code).inc()
        for part, duration in exchange.timings.items():
            self._stage_seconds.labels(part).observe(duration)
        if exchange.body_bytes:
            self._body_bytes.observe(exchange.body_bytes)
        if exchange.width:
            self._megapixels.observe(exchange.width * exchange.height / 1e6)


class Metrics:
    """All series of one service, over one registry."""

    def __init__(self) -> None:
        # A second series per counter and histogram, saying when it was made, that nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        # Processor time, memory and descriptors of this process alone; workers tell their own.
        ProcessCollector(registry=self.registry)
        self.door = DoorMetrics(self.registry)
        self.inference = InferenceMetrics(self.registry)
