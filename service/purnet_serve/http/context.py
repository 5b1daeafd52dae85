"""What the guard and the routes share: one of each for a running service."""

from __future__ import annotations

from dataclasses import dataclass

from purnet_serve.http.admission import Admission, Keys
from purnet_serve.images.codec import Limits
from purnet_serve.images.thread_pool import BoundedThreadPool, MemoryBudget
from purnet_serve.inference.backend import Backend
from purnet_serve.observability.cpus import available_cpus
from purnet_serve.observability.http_metrics import HttpMetrics
from purnet_serve.settings import Settings


@dataclass(frozen=True, slots=True)
class Door:
    """Everything between a socket and the backend."""

    settings: Settings
    backend: Backend
    metrics: HttpMetrics
    keys: Keys
    admission: Admission
    answers: MemoryBudget
    pixels: MemoryBudget
    decoding: BoundedThreadPool
    encoding: BoundedThreadPool
    limits: Limits

    @classmethod
    def build(cls, settings: Settings, backend: Backend, metrics: HttpMetrics) -> Door:
        """Put the parts together; nothing is read or started."""
        decode_threads, encode_threads = pool_threads(settings)
        pixels = MemoryBudget(settings.max_pixel_bytes)
        return cls(
            settings=settings,
            backend=backend,
            metrics=metrics,
            keys=Keys(settings.api_keys_file),
            admission=Admission(settings, backend.unready_reason),
            answers=MemoryBudget(settings.max_answer_bytes),
            pixels=pixels,
            decoding=BoundedThreadPool(decode_threads, "decode", pixels),
            encoding=BoundedThreadPool(encode_threads, "encode", pixels),
            limits=Limits(settings.max_pixels, settings.max_side),
        )

    async def close(self) -> None:
        """Wait for the threads that are still at work."""
        await self.decoding.close()
        await self.encoding.close()


def pool_threads(settings: Settings) -> tuple[int, int]:
    """Threads for decoding and for encoding.

    Most of the CPUs belong to the network; but one huge photo must not hold up all others, so
    there are two of each even on a small machine.
    """
    quarter = min(8, max(2, available_cpus() // 4))
    decode = settings.decode_threads or quarter
    return decode, settings.encode_threads or decode
