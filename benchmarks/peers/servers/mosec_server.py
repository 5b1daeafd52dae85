"""mosec: a process that decodes, one that predicts in batches, one that encodes, for each
processor.
"""

import numpy as np
from benchmarks.peers.servers import codec
from benchmarks.peers.servers.network import Network
from benchmarks.peers.servers.options import BATCH_WAIT_S, MAX_BATCH, PROCESSORS
from mosec import Server, Worker

from purnet.imaging import UInt8Array

Size = tuple[int, int]


class Decode(Worker):
    """Photo -> pixels and size."""

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is."""
        return bytes(data)  # mosec gives a bytearray

    def forward(self, photo: bytes) -> tuple[UInt8Array, Size]:
        """One photo."""
        return codec.decode(photo)


class Infer(Worker):
    """Pixels -> masks. With batches off mosec gives one input instead of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(threads=1)

    def forward(
        self, data: list[tuple[UInt8Array, Size]] | tuple[UInt8Array, Size]
    ) -> list[tuple[UInt8Array, Size]] | tuple[UInt8Array, Size]:
        """Several requests at once, or one."""
        if isinstance(data, tuple):
            pixels, size = data
            return self.network(pixels[None])[0], size
        images, sizes = zip(*data, strict=True)
        return list(zip(self.network(np.stack(images)), sizes, strict=True))


class Encode(Worker):
    """Mask -> PNG."""

    resp_mime_type = "image/png"

    def forward(self, data: tuple[UInt8Array, Size]) -> bytes:
        """One mask."""
        return codec.encode(*data)

    def serialize(self, data: bytes) -> bytes:
        """Send it as it is."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=PROCESSORS, route="/mask")
    server.append_worker(
        Infer,
        num=PROCESSORS,
        max_batch_size=MAX_BATCH,
        max_wait_time=round(BATCH_WAIT_S * 1000),
        route="/mask",
    )
    server.append_worker(Encode, num=PROCESSORS, route="/mask")
    server.run()
