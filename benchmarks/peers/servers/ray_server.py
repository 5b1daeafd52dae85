"""Ray Serve: a replica for each processor; decode and encode in threads around `@serve.batch`."""

import asyncio
import os
from typing import Any

import numpy as np
import ray
from benchmarks.peers.servers.codec import decode, encode
from benchmarks.peers.servers.network import Network
from benchmarks.peers.servers.options import (
    BATCH_WAIT_S,
    DEADLINE_S,
    MAX_BATCH,
    MAX_WAITING,
    PORT,
    PROCESSORS,
)
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from purnet.imaging import UInt8Array

OBJECT_STORE_BYTES = 256 * 2**20

# Ray's own limit, 5, would keep batches small.
LIMITS: dict[str, Any] = {"max_ongoing_requests": 32}
if MAX_WAITING is not None:
    ongoing = max(1, MAX_WAITING // PROCESSORS - 1)
    LIMITS = {"max_ongoing_requests": ongoing, "max_queued_requests": 1}


@serve.deployment(**LIMITS, num_replicas=PROCESSORS, ray_actor_options={"num_cpus": 1})
class Mask:
    """A replica."""

    def __init__(self) -> None:
        self.network = Network(threads=1)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def infer(self, pixels: list[UInt8Array]) -> list[UInt8Array]:
        """Pixels of several requests -> their masks."""
        return list(await asyncio.to_thread(self.network, np.stack(pixels)))

    async def __call__(self, request: Request) -> Response:
        """Decode, predict, encode."""
        photo = await request.body()
        pixels, size = await asyncio.to_thread(decode, photo)
        mask: Any = await self.infer(pixels)
        return Response(await asyncio.to_thread(encode, mask, size), media_type="image/png")


if __name__ == "__main__":
    ray.init(
        num_cpus=PROCESSORS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=os.environ["PEER_FOLDER"],
    )
    options = {"host": "127.0.0.1", "port": PORT, "request_timeout_s": DEADLINE_S}
    serve.start(http_options=options, logging_config={"enable_access_log": False})
    serve.run(Mask.bind(), route_prefix="/mask", blocking=True)
