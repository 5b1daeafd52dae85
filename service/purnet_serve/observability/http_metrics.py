"""Metrics of HTTP requests, and the registry of all metrics.

`HttpMetrics` counts requests as clients see them, `InferenceMetrics` queue and workers. The values
of every label are a closed set, and each series exists, at 0, before the first request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from purnet_serve.errors import all_errors
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import Stage
from purnet_serve.observability.process_metrics import watch_process

OTHER = "other"
"""Label of every path and method the service does not have, so that no client can make a series."""

STATUSES = ("200", *sorted({str(kind.status) for kind in all_errors()}), OTHER)

# From an error that needs no work to an inference that waited in a full queue.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BYTES = tuple(1024.0 * 4**power for power in range(1, 9))
MEGAPIXELS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 40.0)


class HttpMetrics:
    """Requests as clients see them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.registry = registry
        self._methods: dict[str, frozenset[str]] = {}
        # Looking a series up by its labels costs more than counting in it.
        self._requests_by_labels: dict[tuple[str, str, str], Counter] = {}
        self._seconds_by_route: dict[str, Histogram] = {}
        self._requests = counter(
            "purnet_requests", "Requests answered.", ("route", "method", "status")
        )
        self._request_seconds = histogram(
            "purnet_request_seconds",
            "Seconds from the first header to the last byte of an answer with a picture (200).",
            ("route",),
            buckets=SECONDS,
        )
        self._stage_seconds = histogram(
            "purnet_stage_seconds",
            "Seconds of mask requests by stage.",
            ["stage"],
            buckets=SECONDS,
        )
        text = "Requests but for probes that were answered with an error, by its code."
        self._errors = counter("purnet_errors", text, ["code"])
        self._gone = counter(
            "purnet_client_gone",
            "Requests whose client left first, by stage.",
            ["stage"],
        )
        self._body_bytes = histogram("purnet_body_bytes", "Bytes of image uploads.", buckets=BYTES)
        self._megapixels = histogram(
            "purnet_image_megapixels", "Megapixels of decoded images.", buckets=MEGAPIXELS
        )
        self._requests_in_flight = gauge(
            "purnet_requests_in_flight", "Admitted requests not yet answered."
        )
        self._bytes_in_flight = gauge(
            "purnet_bytes_in_flight", "Bytes of uploads held or reserved."
        )
        text = "Requests that were accepted and wait for a slot of the pipeline."
        self._waiting = gauge("purnet_requests_waiting", text)
        text = "Time after which a request would be answered that came now and was due last."
        self._wait_estimate = gauge("purnet_wait_estimate_seconds", text)
        self._answer_bytes = gauge("purnet_answer_bytes", "Bytes of answers being encoded or sent.")
        self._pixel_bytes = gauge(
            "purnet_pixel_bytes", "Bytes of decoded pixels that threads at work may hold."
        )
        self._seconds_by_stage = {stage: self._stage_seconds.labels(stage) for stage in Stage}
        for stage in Stage:
            self._gone.labels(stage)
        for kind in all_errors():
            self._errors.labels(kind.code)

    def register(self, routes: Mapping[str, Iterable[str]], photo_paths: Iterable[str]) -> None:
        """Create every series of these routes, each a path template with its methods.

        Those of `photo_paths` answer pictures.
        """
        self._methods = {path: frozenset(methods) for path, methods in routes.items()}
        self._seconds_by_route = {path: self._request_seconds.labels(path) for path in photo_paths}
        for path, methods in {**self._methods, OTHER: frozenset[str]()}.items():
            for method in (*methods, OTHER):
                for status in STATUSES:
                    series = self._requests.labels(path, method, status)
                    self._requests_by_labels[path, method, status] = series

    def watch(
        self,
        *,
        requests: Callable[[], float],
        upload_bytes: Callable[[], float],
        answer_bytes: Callable[[], float],
        pixel_bytes: Callable[[], float],
        waiting: Callable[[], float],
        wait_s: Callable[[], float],
    ) -> None:
        """Read the gauges from these functions at every scrape."""
        self._requests_in_flight.set_function(requests)
        self._bytes_in_flight.set_function(upload_bytes)
        self._answer_bytes.set_function(answer_bytes)
        self._pixel_bytes.set_function(pixel_bytes)
        self._waiting.set_function(waiting)
        self._wait_estimate.set_function(wait_s)

    def route(self, path: str) -> str:
        """The label for a path: itself when the service has such a route."""
        return path if path in self._methods else OTHER

    def client_left(self, stage: Stage) -> None:
        """A client closed its connection before it had its answer."""
        self._gone.labels(stage).inc()

    def answered(
        self, path: str, method: str, status: int, code: str | None, seconds: float
    ) -> None:
        """An answer was sent; `code` is that of the error, if it was one that counts.

        Refusals take a millisecond: with them among the seconds, masks would seem fast in overload.
        """
        route = self.route(path)
        method = method if method in self._methods.get(route, ()) else OTHER
        self._requests_by_labels[route, method, _known(status)].inc()
        if status == 200 and route in self._seconds_by_route:
            self._seconds_by_route[route].observe(seconds)
        if code is not None:
            self._errors.labels(code).inc()

    def measured(self, timings: Mapping[Stage, float], body_bytes: int, pixels: int) -> None:
        """What an answered request took: seconds by stage, bytes uploaded, pixels decoded."""
        for stage, seconds in timings.items():
            self._seconds_by_stage[stage].observe(seconds)
        if body_bytes:
            self._body_bytes.observe(body_bytes)
        if pixels:
            self._megapixels.observe(pixels / 1e6)


def _known(status: int) -> str:
    return str(status) if str(status) in STATUSES else OTHER


class Metrics:
    """All series of one service, over one registry."""

    def __init__(self) -> None:
        # Otherwise each counter and histogram has a second series with the time it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        # Of this process; workers report their own.
        watch_process(self.registry)
        self.http = HttpMetrics(self.registry)
        self.inference = InferenceMetrics(self.registry)
