"""Which engine runs a checkpoint: by the kind of file and the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.imaging import open_image, to_pixels
from model.predictor import SELF_CHECK_PHOTO, Engine, UInt8Array


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint on an engine, with what it should answer for the bundled photo."""

    engine: Engine
    variant: str
    sha256: str
    input_size: int
    reference: UInt8Array
    """(S, S): the bundled photo's mask by eager float32."""


def load_engine(checkpoint: Path | None, *, device: str) -> Loaded:
    """Load a checkpoint (None: the shipped weights) onto a device.

    Raises `CheckpointError` or `DeviceError`.
    """
    return load_torch(checkpoint, device=device)


def load_torch(checkpoint: Path | None, *, device: str) -> Loaded:
    """Load any checkpoint `model.checkpoint` reads onto PyTorch."""
    from model import devices
    from model.checkpoint import DEFAULT_CHECKPOINT, load_with_info, sha256_of
    from model.engines.cuda import CudaEngine
    from model.engines.eager import EagerEngine, reference_maps

    path = checkpoint or DEFAULT_CHECKPOINT
    where = devices.resolve(device)
    network, info = load_with_info(path)
    reference = reference_maps(network, self_check_pixels(info.input_size)).masks[0]
    engine: Engine = EagerEngine(network) if where.type == "cpu" else CudaEngine(network, where)
    return Loaded(
        engine=engine,
        variant=info.variant,
        sha256=sha256_of(path),
        input_size=info.input_size,
        reference=reference,
    )


def self_check_pixels(input_size: int) -> UInt8Array:
    """The bundled photo as a batch of one: (1, S, S, 3) uint8."""
    return np.ascontiguousarray(to_pixels(open_image(SELF_CHECK_PHOTO), input_size)[None])
