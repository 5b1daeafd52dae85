"""LitServe: a worker process for each processor decodes, batches, predicts and encodes."""

from typing import Annotated

import litserve
import numpy as np
from benchmarks.peers.servers.codec import decode, encode
from benchmarks.peers.servers.network import Network
from benchmarks.peers.servers.options import (
    BATCH_WAIT_S,
    DEADLINE_S,
    MAX_BATCH,
    PORT,
    PROCESSORS,
)
from fastapi import Body, Response

from purnet.imaging import UInt8Array

Size = tuple[int, int]


class MaskAPI(litserve.LitAPI):
    """The steps as LitServe names them. With batches off it calls neither `batch` nor `unbatch`."""

    def setup(self, device: str) -> None:
        """Load the network in a worker, on a thread of its own processor."""
        self.network = Network(threads=1)

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="image/jpeg")]
    ) -> tuple[UInt8Array, Size]:
        """Photo -> pixels and size."""
        return decode(request)

    def batch(self, inputs: list[tuple[UInt8Array, Size]]) -> tuple[UInt8Array, tuple[Size, ...]]:
        """Several pixels -> (N, 320, 320, 3)."""
        pixels, sizes = zip(*inputs, strict=True)
        return np.stack(pixels), sizes

    def predict(
        self, batch: tuple[UInt8Array, tuple[Size, ...] | Size]
    ) -> tuple[UInt8Array, tuple[Size, ...] | Size]:
        """A batch, or one image where batches are off."""
        pixels, sizes = batch
        if pixels.ndim == 3:
            return self.network(pixels[None])[0], sizes
        return self.network(pixels), sizes

    def unbatch(self, output: tuple[UInt8Array, tuple[Size, ...]]) -> list[tuple[UInt8Array, Size]]:
        """(N, 320, 320) -> masks with their sizes."""
        return list(zip(*output, strict=True))

    def encode_response(self, output: tuple[UInt8Array, Size]) -> Response:
        """Mask -> PNG."""
        return Response(encode(*output), media_type="image/png")


if __name__ == "__main__":
    api = MaskAPI(max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S, api_path="/mask")
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=PROCESSORS,
        # It is looked at when a worker takes a request from the queue: half is left for the batch.
        timeout=DEADLINE_S / 2 if DEADLINE_S else 30,
        fast_queue=True,  # ZeroMQ instead of a manager's queue
        disable_openapi_url=True,
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
