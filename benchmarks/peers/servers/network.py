"""The shipped network on OpenVINO, in float32 as the service runs it."""

from typing import Any

import numpy as np
from benchmarks.peers.servers.codec import INPUT_SIZE
from benchmarks.peers.servers.options import MAX_BATCH

from purnet.imaging import UInt8Array
from purnet.inference.openvino_engine import DEFAULT_EXPORT, NETWORK, runtime


def compiled(*, threads: int, hint: str) -> Any:
    """The network compiled for the CPU; `hint` is OpenVINO's `PERFORMANCE_HINT`."""
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
    }
    return runtime().Core().compile_model(DEFAULT_EXPORT / NETWORK, "CPU", options)


class Network:
    """Runs one batch at a time. Every size is tried once, so that no client waits for it."""

    def __init__(self, *, threads: int) -> None:
        self._request = compiled(threads=threads, hint="LATENCY").create_infer_request()
        for images in range(1, MAX_BATCH + 1):
            self(np.zeros((images, INPUT_SIZE, INPUT_SIZE, 3), np.uint8))

    def __call__(self, pixels: UInt8Array) -> UInt8Array:
        """(N, 320, 320, 3) uint8 -> masks (N, 320, 320) uint8, a copy."""
        masks: UInt8Array = self._request.infer([pixels], share_inputs=True)[0]
        return masks
