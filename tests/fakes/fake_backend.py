"""A backend without a model: the mask is the photo's red channel, given when the test allows."""

from __future__ import annotations

import asyncio

from purnet_serve.errors import DeadlineError, ReloadError
from purnet_serve.inference.backend import ModelInfo, Pixels, Prediction, Throughput

INPUT_SIZE = 32
WAIT_S = 10.0
"""No test waits longer for what must happen."""


def info(digit: str = "a", size: int = INPUT_SIZE) -> ModelInfo:
    return ModelInfo("fake", digit * 64, size, "cpu", "fake")


class FakeBackend:
    """Implements `Backend`. `gate` holds predictions while it is closed."""

    def __init__(self, input_size: int = INPUT_SIZE) -> None:
        self.model: ModelInfo | None = info(size=input_size)
        self.reason: str | None = None
        self.failure: Exception | None = None
        self.refuses_reload = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[Pixels] = []
        self.arrived: asyncio.Queue[None] = asyncio.Queue()
        self.cancelled = 0
        self.upstream = 0
        self.queued = 0
        self.throughput: Throughput | None = None
        self.started = False
        self.became_ready = asyncio.Event()
        self.became_ready.set()

    async def start(self) -> None:
        self.started = True

    async def wait_ready(self) -> None:
        await self.became_ready.wait()

    async def stop(self) -> None:
        self.started = False

    async def reload(self) -> ModelInfo:
        if self.refuses_reload:
            raise ReloadError("another input size")
        self.model = info("b")
        return self.model

    async def predict(self, pixels: Pixels, *, deadline_s: float) -> Prediction:
        if self.model is None:
            raise AssertionError("asked for a prediction without a model")
        self.seen.append(pixels)
        self.arrived.put_nowait(None)
        try:
            async with asyncio.timeout_at(deadline_s):
                await self.gate.wait()
        except TimeoutError:
            raise DeadlineError("The deadline passed in the queue.") from None
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        return Prediction(pixels[..., 0].copy(), self.model, 0.001, 0.002, 1)

    async def one_arrived(self) -> None:
        """Return when one more prediction has been asked for."""
        async with asyncio.timeout(WAIT_S):
            await self.arrived.get()

    def expect(self, images: int) -> None:
        self.upstream += images

    def unready_reason(self) -> str | None:
        return self.reason
