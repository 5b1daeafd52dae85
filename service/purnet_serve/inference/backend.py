"""The interface between the HTTP side and the model: everything HTTP knows about predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""One decoded image at the model's input size: (S, S, 3) uint8 RGB, C-contiguous."""

Mask = NDArray[np.uint8]
"""One saliency map: (S, S) uint8, 255 = salient."""


def side_of(pixels: Pixels) -> int:
    """Side S of an image, in pixels. Raises `ValueError` for any that is not as `Pixels` says."""
    side = len(pixels)
    if pixels.dtype != np.uint8 or pixels.shape != (side, side, 3):
        raise ValueError(f"{pixels.dtype} pixels of {pixels.shape}, not uint8 (S, S, 3)")
    return side


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client may know of the model that answers."""

    name: str
    """Variant, e.g. `purnet-lite0-gc`."""
    sha256: str
    """Hex digest of the checkpoint file; its first 12 digits are the model version."""
    input_size: int
    """Side S of the square the network sees, in pixels."""
    device: str
    """Device the workers run on, e.g. `cpu` or `cuda:0`."""
    engine: str
    """How the network is run, e.g. `eager` or `openvino`."""

    @property
    def version(self) -> str:
        """Short name of these exact weights, as sent in `X-Model-Version`."""
        return f"{self.name}@{self.sha256[:12]}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer, with where its time went and which weights gave it."""

    mask: Mask
    model: ModelInfo
    queue_s: float
    """Seconds from submission to the start of the batch."""
    infer_s: float
    """Seconds the batch took in the worker, transfers included."""
    batch_size: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast the devices are together, as their workers measured it when they started."""

    latency_s: float
    """Seconds that one image takes."""
    interval_s: float
    """Seconds from one mask to the next while images wait."""
    concurrency: int
    """Images that the devices hold at the same time, those sent ahead included."""


def combine(devices: Sequence[Throughput]) -> Throughput:
    """The throughput of several devices that share the images; `devices` has at least one."""
    return Throughput(
        latency_s=min(throughput.latency_s for throughput in devices),
        interval_s=1 / sum(1 / throughput.interval_s for throughput in devices),
        concurrency=sum(throughput.concurrency for throughput in devices),
    )


class Backend(Protocol):
    """Where predictions come from. All coroutines run on the server's event loop."""

    async def start(self) -> None:
        """Begin to bring the workers up; `wait_ready` returns when they answer."""

    async def wait_ready(self) -> None:
        """Return once every device answers. Raises `StartupError` when one never will."""

    async def stop(self) -> None:
        """Fail every open ticket with `DrainingError` and end the workers.

        Whoever accepts requests waits for their answers before this call.
        """

    async def reload(self) -> ModelInfo:
        """Read the configured checkpoint again, load it beside the running one, check it, swap.

        Raises `ReloadError` and changes nothing when the new file is corrupt, of another input
        size, or fails its self-check.
        """

    async def predict(self, pixels: Pixels, *, deadline_s: float) -> Prediction:
        """Queue one image and wait for its mask.

        `deadline_s` is on the loop's clock (`loop.time()`). Raises `DeadlineError`,
        `WorkerError`, `NonFiniteError`, `NotReadyError` or `DrainingError`; cancelling the call
        takes the ticket out of the queue.
        """

    def expect(self, images: int) -> None:
        """Announce `images` on their way here: +1 when a decode starts, -1 when it has ended.

        A queue may wait a moment for images that are still being decoded, and only for those.
        """

    @property
    def model(self) -> ModelInfo | None:
        """The model that answers now; None until the first load."""

    @property
    def throughput(self) -> Throughput | None:
        """What the devices measured when they came up; None until the first load."""

    @property
    def queued(self) -> int:
        """Images that wait for a device now."""

    def unready_reason(self) -> str | None:
        """None when predictions can be made, else the reason they cannot."""
