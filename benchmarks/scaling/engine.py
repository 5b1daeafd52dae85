"""An engine that sleeps instead of computing: what is measured before it is all the rest.

Its checkpoint is a JSON file: seconds an image, and the side of its input.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from purnet.errors import CheckpointError
from purnet.imaging import UInt8Array
from purnet.inference.engine import EngineOutput

FACTORY = "benchmarks.scaling.engine:load"


@dataclass(frozen=True)
class Sleep:
    """What the checkpoint says."""

    image_s: float
    """An image takes that long, also in a batch, which gains nothing then."""
    input_size: int = 320

    def save(self, path: Path) -> Path:
        """Write the checkpoint."""
        path.write_text(json.dumps(asdict(self)))
        return path


class SleepingEngine:
    """An `Engine` whose masks are grey."""

    name, device, streams = "sleep", "cpu", 1

    def __init__(self, image_s: float) -> None:
        self._image_s = image_s

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """Sleep, and answer masks of the right shape."""
        time.sleep(self._image_s * len(pixels))
        return EngineOutput(pixels[..., 0].copy(), np.ones(len(pixels), np.bool_))


class SleepingPredictor:
    """What a worker takes for a `Predictor`."""

    variant = "sleep"

    def __init__(self, sleep: Sleep, sha256: str) -> None:
        self.sha256, self.input_size = sha256, sleep.input_size
        self.engine = SleepingEngine(sleep.image_s)
        self._sleep = sleep

    def self_check(self) -> None:
        """There is nothing to check."""

    def run(self, pixels: UInt8Array) -> EngineOutput:
        """Masks of pixels."""
        return self.engine(pixels)

    def measure(self, pixels: UInt8Array) -> float:
        """Seconds of a batch."""
        return max(1e-6, self._sleep.image_s) * len(pixels)


def load(
    checkpoint: Path | None = None, *, device: str = "auto", threads: int | None = None
) -> SleepingPredictor:
    """As `purnet.inference.factory.load_to_serve`."""
    if checkpoint is None:
        raise CheckpointError("The sleeping engine needs a file that says how long it sleeps.")
    data = checkpoint.read_bytes()
    return SleepingPredictor(Sleep(**json.loads(data)), hashlib.sha256(data).hexdigest())
