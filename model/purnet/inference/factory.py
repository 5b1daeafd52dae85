"""Which engine runs a checkpoint: by the kind of file, the device and what is installed.

| checkpoint | CUDA device | elsewhere |
|---|---|---|
| none given | PyTorch, shipped weights | OpenVINO, their shipped export; else PyTorch |
| export | refused | OpenVINO |
| any other | PyTorch | PyTorch; to serve, OpenVINO on an export made first and kept |
"""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from purnet.errors import CheckpointError, DeviceError
from purnet.inference.exported import DEFAULT_EXPORT, is_export, read_info, read_reference
from purnet.inference.parity import self_check_pixels
from purnet.inference.predictor import Engine, UInt8Array
from purnet.io import sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint on an engine, with what it should answer for the bundled photo."""

    engine: Engine
    variant: str
    sha256: str
    input_size: int
    reference: UInt8Array
    """(S, S): the bundled photo's mask by eager float32."""


def load_engine(checkpoint: Path | None, *, device: str, convert: bool = False) -> Loaded:
    """Load a checkpoint (None: the shipped weights) onto a device.

    `convert` allows to export a checkpoint first where OpenVINO is what should run it. Raises
    `CheckpointError` or `DeviceError`.
    """
    if checkpoint is not None and is_export(checkpoint):
        return load_export(checkpoint, device=device)
    if _installed("openvino") and not _on_cuda(device):
        if checkpoint is None and is_export(DEFAULT_EXPORT):
            return load_export(DEFAULT_EXPORT, device=device)
        if convert and _installed("torch"):
            return _load_converted(checkpoint, device=device)
    return load_torch(checkpoint, device=device)


def load_export(folder: Path, *, device: str) -> Loaded:
    """Load an export onto the CPU. Raises `CheckpointError` or `DeviceError`."""
    from purnet.inference import openvino_engine as openvino

    if device not in ("auto", "cpu"):
        raise DeviceError(
            f"{device} was asked for, but the export {folder} runs on the CPU only; give the "
            "checkpoint it was made from"
        )
    info = read_info(folder)
    # OpenVINO's thread pool does not read the variable by which numeric libraries are told.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Loaded(
        engine=openvino.load(folder, threads=int(threads) if threads.isdecimal() else None),
        variant=info.variant,
        sha256=info.sha256,
        input_size=info.input_size,
        reference=read_reference(folder),
    )


def load_torch(checkpoint: Path | None, *, device: str) -> Loaded:
    """Load any checkpoint `purnet.network.checkpoint` reads onto PyTorch."""
    if not _installed("torch"):
        raise _torch_is_missing(checkpoint, device)

    from purnet.inference.cuda_engine import CudaEngine
    from purnet.inference.torch_engine import EagerEngine, reference_output, resolve_device
    from purnet.network.checkpoint import DEFAULT_CHECKPOINT, load_with_info

    path = checkpoint or DEFAULT_CHECKPOINT
    where = resolve_device(device)
    network, info = load_with_info(path)
    reference = reference_output(network, self_check_pixels(info.input_size)).masks[0]
    engine: Engine = EagerEngine(network) if where.type == "cpu" else CudaEngine(network, where)
    return Loaded(
        engine=engine,
        variant=info.variant,
        sha256=sha256_of(path),
        input_size=info.input_size,
        reference=reference,
    )


def _load_converted(checkpoint: Path | None, *, device: str) -> Loaded:
    """Load a checkpoint's export, made first if need be; PyTorch where there can be none."""
    from purnet.inference.export_cache import cached_export

    try:
        folder = cached_export(checkpoint or _default_checkpoint())
    except (CheckpointError, OSError) as error:
        # A checkpoint that is bad in itself is refused again, in its own words, by PyTorch.
        log.warning("serving by PyTorch, which is slower here: %s", error)
        return load_torch(checkpoint, device=device)
    return load_export(folder, device=device)


def _default_checkpoint() -> Path:
    from purnet.network.checkpoint import DEFAULT_CHECKPOINT  # imports torch

    return DEFAULT_CHECKPOINT


def _torch_is_missing(checkpoint: Path | None, device: str) -> CheckpointError | DeviceError:
    """Why a checkpoint cannot be loaded in an installation without torch, and what to do."""
    if device not in ("auto", "cpu"):
        return DeviceError(
            f"{device} was asked for, but this installation runs on the CPU only: "
            "pip install 'purnet-serve[torch]'"
        )
    if checkpoint is None:
        return CheckpointError(
            "no engine is installed: pip install 'purnet-serve[openvino]' or 'purnet-serve[torch]'"
        )
    if not checkpoint.exists():
        return CheckpointError(f"there is no checkpoint {checkpoint}")
    return CheckpointError(
        f"{checkpoint} is not an export, and this installation has no torch to read it with. Where "
        f"torch is installed, run `purnet export {checkpoint} -o DIR`; then serve DIR"
    )


def _on_cuda(device: str) -> bool:
    """Whether a device name leads to a GPU. torch is only asked where there is a driver."""
    if device != "auto":
        return device != "cpu"
    if not _installed("torch"):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def _installed(package: str) -> bool:
    return find_spec(package) is not None
