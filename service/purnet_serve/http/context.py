"""What middleware and routes share, and how much memory all of it can take."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response

from purnet.cpus import available_cpus
from purnet_serve.http.admission import Admission
from purnet_serve.http.api_keys import ApiKeys
from purnet_serve.http.fetch import Fetcher
from purnet_serve.http.photo_route import PhotoHandler
from purnet_serve.http.removebg_body import PARSED_BYTES
from purnet_serve.http.scheduler import RequestScheduler
from purnet_serve.images.codec import ENCODER_BYTES_PER_PIXEL, MASK_BYTES_PER_PIXEL
from purnet_serve.images.header import BYTES_PER_PIXEL, FORMATS_BY_NAME, Limits
from purnet_serve.images.thread_pool import BoundedThreadPool, MemoryBudget
from purnet_serve.inference.backend import Backend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import MIB, Settings

BASE_BYTES = 160 * MIB
"""Interpreter, libraries and metrics of an idle process, rounded up."""

BYTES_PER_REQUEST = MIB
"""Pixels and mask at the model's size, and what the server buffers of a connection."""

RAY_BYTES = 128 * MIB
"""Ray's libraries in an idle process, rounded up."""

RAY_BYTES_PER_REQUEST = 2 * MIB
"""Pixels and mask as bytes and as messages of gRPC."""


ErrorAnswer = Callable[..., Response]
"""What answers an error, with the arguments of `problem_details.problem`."""


class ServiceContext:
    """One of each for a running service: everything between a socket and the backend."""

    def __init__(self, settings: Settings, backend: Backend, metrics: Metrics) -> None:
        decode_threads, encode_threads = pool_threads(settings)
        self.settings = settings
        self.backend = backend
        self.metrics = metrics.http
        self.keys = ApiKeys(settings.api_keys_file)
        self.admission = Admission(settings, backend.unready_reason)
        self.scheduler = RequestScheduler(
            settings.target_latency_s,
            lambda: backend.throughput,
            decode_threads,
            metrics.inference,
        )
        self.answer_memory = MemoryBudget(settings.max_answer_bytes)
        self.pixel_memory = MemoryBudget(settings.max_pixel_bytes)
        self.decode_pool = BoundedThreadPool(decode_threads, "decode", self.pixel_memory)
        self.encode_pool = BoundedThreadPool(encode_threads, "encode", self.pixel_memory)
        formats = tuple(FORMATS_BY_NAME[name] for name in settings.formats)
        self.fetcher = Fetcher(settings)
        self.photo_routes: dict[tuple[str, str], PhotoHandler] = {}
        """By method and path: what answers a photo, once it was admitted."""
        self.error_answers: dict[str, ErrorAnswer] = {}
        """By path: what answers errors there, where it is not a problem document."""
        self.limits = Limits(settings.max_pixels, settings.max_side, formats)
        self.metrics.watch(
            requests=lambda: self.admission.requests,
            waiting=lambda: self.scheduler.schedule.waiting,
            wait_s=self.scheduler.schedule.estimate_s,
            upload_bytes=lambda: self.admission.bytes,
            answer_bytes=lambda: self.answer_memory.reserved_bytes,
            pixel_bytes=lambda: self.pixel_memory.reserved_bytes,
        )


def pool_threads(settings: Settings) -> tuple[int, int]:
    """Threads for decoding and for encoding.

    The network needs most of the CPUs; but one huge photo must not delay all others, so there are
    two of each even on a small machine.
    """
    decode = settings.decode_threads or min(8, max(2, available_cpus() // 4))
    return decode, settings.encode_threads or decode


def memory_ceiling_bytes(settings: Settings) -> int:
    """Most bytes the API process holds, whatever clients send; the workers come on top.

    Tested against a running service; docs/operating.md and `purnet config` quote it.
    """
    each = MASK_BYTES_PER_PIXEL + max(*BYTES_PER_PIXEL.values(), *ENCODER_BYTES_PER_PIXEL.values())
    largest = settings.max_pixels * each
    ray_bytes = RAY_BYTES + settings.max_requests_in_flight * RAY_BYTES_PER_REQUEST
    return (
        BASE_BYTES
        + (ray_bytes if settings.backend == "ray" else 0)
        + max(settings.max_bytes_in_flight, PARSED_BYTES * settings.max_body_bytes)
        + settings.max_answer_bytes
        + settings.max_requests_in_flight * BYTES_PER_REQUEST
        + max(settings.max_pixel_bytes, largest)
        + sum(pool_threads(settings)) * settings.max_body_bytes
    )
