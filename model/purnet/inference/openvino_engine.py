"""PurNet run by OpenVINO on the CPU, from an export. Loads no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from purnet.errors import CheckpointError
from purnet.inference.exported import NETWORK
from purnet.inference.predictor import EngineOutput, OutOfMemoryError, UInt8Array

IMAGES_AT_ONCE = 4
"""Fewest images of a batch computed together where there are that many.

On two processors, four at once take 13 % less time than one by one, eight 18 % less and sixteen no
less than four, while each adds some 60 MB: `purnet-lite0` takes 150 MB for one, 1.1 GB for sixteen.
"""

_OUT_OF_MEMORY = ("bad_alloc", "allocate")
"""OpenVINO wraps the allocator's exception into a RuntimeError that quotes it."""


def runtime() -> Any:
    """Import OpenVINO without its telemetry.

    The package `openvino-telemetry` comes with it, reports every import to a web analytics service
    and writes into the home folder; OpenVINO goes without when it cannot be imported. Raises
    `CheckpointError` where OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise CheckpointError(
            "an export needs OpenVINO: pip install 'purnet-serve[openvino]'"
        ) from error
    return openvino


class OpenVinoEngine:
    """A compiled network: preprocessing, network, sigmoid and truncation are in the graph.

    `compiled` takes (N, S, S, 3) uint8 and gives masks (N, S, S) uint8 and flags (N,) bool; it is
    given at most `at_once` images at a time.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, *, at_once: int = IMAGES_AT_ONCE) -> None:
        self._request = compiled.create_infer_request()
        self._at_once = at_once

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """See `Engine`."""
        parts = [
            self._infer(pixels[start : start + self._at_once])
            for start in range(0, len(pixels), self._at_once)
        ]
        return EngineOutput(
            masks=np.concatenate([part.masks for part in parts]),
            finite=np.concatenate([part.finite for part in parts]),
        )

    def _infer(self, pixels: UInt8Array) -> EngineOutput:
        """Run a few images. Answers are copies: the next call reuses OpenVINO's own memory."""
        try:
            answer = self._request.infer([pixels], share_inputs=True)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            if any(word in str(error) for word in _OUT_OF_MEMORY):
                raise OutOfMemoryError(str(error)) from error
            raise
        return EngineOutput(masks=answer[0], finite=answer[1])


def load(
    folder: Path, *, threads: int | None = None, precision: Literal["f32", "bf16"] = "f32"
) -> OpenVinoEngine:
    """Compile an export for this processor.

    `threads` None leaves their number to OpenVINO: all processors it may use. What it computes in
    is up to `precision`; bfloat16 misses the parity gate (docs/operating.md has the figures).
    Raises `CheckpointError` for a network that OpenVINO does not read.
    """
    openvino = runtime()
    options: dict[str, Any] = {
        # Without this OpenVINO computes in bfloat16 wherever the processor can.
        "INFERENCE_PRECISION_HINT": precision,
        # One request at a time, with all threads on it.
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(folder / NETWORK, "CPU", options)
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO does not read {folder / NETWORK}: {error}") from error
    return OpenVinoEngine(compiled, at_once=max(IMAGES_AT_ONCE, threads or 0))
