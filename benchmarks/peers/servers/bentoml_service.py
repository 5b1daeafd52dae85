"""BentoML as its documentation draws it: a Service that decodes and encodes, before one with
adaptive batching and a worker for each processor.
"""

import asyncio
from typing import Annotated, Any

import bentoml
import numpy as np
from benchmarks.peers.servers.codec import decode, encode
from benchmarks.peers.servers.network import Network
from benchmarks.peers.servers.options import DEADLINE_S, MAX_BATCH, MAX_WAITING, PROCESSORS
from bentoml.validators import ContentType

BATCHING: dict[str, Any] = {}
if MAX_BATCH > 1:
    BATCHING = {"batchable": True, "batch_dim": 0, "max_batch_size": MAX_BATCH}
TRAFFIC: dict[str, Any] = {}
if DEADLINE_S is not None:  # BentoML's own are 60 s
    TRAFFIC = {"timeout": DEADLINE_S, "max_concurrency": MAX_WAITING}
    if BATCHING:
        BATCHING["max_latency_ms"] = round(DEADLINE_S * 1000)

LOGGING = {"access": {"enabled": False}}
# By default the client between the Services closes its session at every hundredth request and
# every five minutes, and what is under way on it then fails with 500 (BentoML issue 5540).
LASTING = {"max_requests": 10**9, "max_age": 86_400.0}


@bentoml.service(workers=PROCESSORS, logging=LOGGING, runner_connection=LASTING)
class Masks:
    """The network."""

    def __init__(self) -> None:
        self.network = Network(threads=1)

    @bentoml.api(**BATCHING)
    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 320, 320, 3) uint8 -> (N, 320, 320) uint8."""
        return self.network(pixels)


@bentoml.service(workers=1, traffic=TRAFFIC, logging=LOGGING)
class Mask:
    """What clients call."""

    masks = bentoml.depends(Masks)

    @bentoml.api(route="/mask")
    async def mask(
        self, photo: Annotated[bytes, ContentType("image/jpeg")], /
    ) -> Annotated[bytes, ContentType("image/png")]:
        """Decode in a thread, predict in the other Service, encode in a thread."""
        pixels, size = await asyncio.to_thread(decode, photo)
        masks = await self.masks.to_async.infer(pixels[None])
        return await asyncio.to_thread(encode, masks[0], size)
