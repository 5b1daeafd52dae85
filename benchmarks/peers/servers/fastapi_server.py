"""FastAPI as its documentation has it: a `def` endpoint in the thread pool, no batches.

Requests run side by side, so the network is compiled for throughput; OpenVINO wants an inference
request for each thread. The pool has a thread more than there are processors: with the 40 that are
the default, decoding threads take turns with inference for no gain.
"""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
import numpy as np
from benchmarks.peers.servers.codec import INPUT_SIZE, decode, encode
from benchmarks.peers.servers.network import compiled
from benchmarks.peers.servers.options import MAX_WAITING, PROCESSORS
from fastapi import Depends, FastAPI, HTTPException, Request, Response

from purnet.imaging import UInt8Array

network = compiled(threads=PROCESSORS, hint="THROUGHPUT")
local = threading.local()
waiting = 0


def infer(pixels: UInt8Array) -> UInt8Array:
    """(320, 320, 3) uint8 -> (320, 320) uint8."""
    if not hasattr(local, "request"):
        local.request = network.create_infer_request()
    mask: UInt8Array = local.request.infer([pixels[None]], share_inputs=True)[0][0]
    return mask


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Size the pool and warm up."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = PROCESSORS + 1
    infer(np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8))
    yield


async def admit() -> AsyncIterator[None]:
    """Refuse what would wait for longer than the deadline; without one everything is taken."""
    global waiting
    if MAX_WAITING is not None and waiting >= MAX_WAITING:
        raise HTTPException(503, headers={"Retry-After": "1"})
    waiting += 1
    try:
        yield
    finally:
        waiting -= 1


async def body(request: Request) -> bytes:
    """The photo."""
    return await request.body()


app = FastAPI(lifespan=lifespan)


@app.post("/mask", dependencies=[Depends(admit)])
def mask(photo: Annotated[bytes, Depends(body)]) -> Response:
    """Decode, predict, encode in one pool thread."""
    pixels, size = decode(photo)
    return Response(encode(infer(pixels), size), media_type="image/png")
