"""Which engine runs a checkpoint: by the kind of file, the device and what is installed.

| checkpoint | CUDA device | elsewhere |
|---|---|---|
| none given | PyTorch, shipped weights | OpenVINO, their shipped export; else PyTorch |
| export | refused | OpenVINO |
| any other | PyTorch | PyTorch; to serve, OpenVINO on an export made first and kept |

Only the engine that is taken is imported.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from purnet.errors import CheckpointError, DeviceError
from purnet.inference import openvino_engine as openvino
from purnet.inference.engine import Engine
from purnet.inference.openvino_engine import DEFAULT_EXPORT, is_export
from purnet.inference.parity import self_check_pixels
from purnet.inference.predictor import Predictor
from purnet.io import sha256_of
from purnet.network.checkpoint_file import is_safetensors

log = logging.getLogger(__name__)


def load(
    checkpoint: Path | str | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    convert: bool = False,
) -> Predictor:
    """Load a checkpoint or an export (None: the shipped weights), strictly, onto one device.

    `device` is `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first CUDA device where torch finds
    one, else the CPU. `threads` bounds those of an engine on the CPU; None leaves their number to
    the engine. `convert` allows to export a checkpoint first where OpenVINO is what runs it
    fastest. Raises `CheckpointError` for a bad file and where no engine is installed, and
    `DeviceError` for a device that was asked for and is not there.
    """
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and is_export(path):
        return load_export(path, device=device, threads=threads)
    if _installed("openvino") and not _on_cuda(device):
        if path is None and is_export(DEFAULT_EXPORT):
            return load_export(DEFAULT_EXPORT, device=device, threads=threads)
        if convert and _installed("torch"):
            return _load_converted(path, device=device, threads=threads)
    return load_torch(path, device=device, threads=threads)


def load_to_serve(
    checkpoint: Path | None = None, *, device: str = "auto", threads: int | None = None
) -> Predictor:
    """Load for many predictions, which are worth a conversion. Raises as `load` does."""
    return load(checkpoint, device=device, threads=threads, convert=True)


def load_export(folder: Path, *, device: str, threads: int | None) -> Predictor:
    """Load an export onto the CPU. Raises `CheckpointError` or `DeviceError`."""
    if device not in ("auto", "cpu"):
        raise DeviceError(
            f"{device} was asked for, but the export {folder} runs on the CPU only; give the "
            "checkpoint it was made from"
        )
    info = openvino.read_info(folder)
    return Predictor(
        openvino.load(folder, threads=threads),
        variant=info.variant,
        sha256=info.sha256,
        input_size=info.input_size,
        reference=openvino.read_reference(folder),
    )


def load_torch(checkpoint: Path | None, *, device: str, threads: int | None) -> Predictor:
    """Load any checkpoint `purnet.network.checkpoint` reads onto PyTorch."""
    if not _installed("torch"):
        raise _torch_is_missing(checkpoint, device)
    import torch

    from purnet.inference.torch_engine import (
        CudaEngine,
        EagerEngine,
        reference_output,
        resolve_device,
    )
    from purnet.network.checkpoint import DEFAULT_CHECKPOINT, load_with_info

    if threads is not None:
        torch.set_num_threads(threads)
    path = checkpoint or DEFAULT_CHECKPOINT
    where = resolve_device(device)
    network, info = load_with_info(path)
    reference = reference_output(network, self_check_pixels(info.input_size)).masks[0]
    engine: Engine = EagerEngine(network) if where.type == "cpu" else CudaEngine(network, where)
    return Predictor(
        engine,
        variant=info.variant,
        sha256=sha256_of(path),
        input_size=info.input_size,
        reference=reference,
    )


def cached_export(checkpoint: Path) -> Path:
    """The export of a checkpoint, made now if it is not there yet. Raises as `export` does.

    It lies in the user's cache folder for `purnet` (on Linux `$XDG_CACHE_HOME/purnet`, by default
    `~/.cache/purnet`), under the checkpoint's sha256 and what else decides its content: the format,
    our version, OpenVINO's and torch's. Only making one loads torch.
    """
    made_by = "-".join([openvino.FORMAT, *map(version, ("purnet-serve", "openvino", "torch"))])
    folder = user_cache_path("purnet", appauthor=False) / f"{sha256_of(checkpoint)[:32]}-{made_by}"
    if not is_export(folder):
        from purnet.inference.openvino_export import export

        export(checkpoint, folder)
    return folder


def _load_converted(checkpoint: Path | None, *, device: str, threads: int | None) -> Predictor:
    """Load a checkpoint's export, made first if need be; PyTorch where there can be none."""
    try:
        folder = cached_export(checkpoint or _default_checkpoint())
    except (CheckpointError, OSError) as error:
        predictor = load_torch(checkpoint, device=device, threads=threads)  # or refuse it once
        log.warning("serving by PyTorch, which is slower here: %s", error)
        return predictor
    try:
        return load_export(folder, device=device, threads=threads)
    except CheckpointError as error:
        # It is ours, in a cache: nobody but us can mend it.
        log.warning("the export of this checkpoint is made again: %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        remade = cached_export(checkpoint or _default_checkpoint())
        return load_export(remade, device=device, threads=threads)


def _default_checkpoint() -> Path:
    from purnet.network.checkpoint import DEFAULT_CHECKPOINT  # imports torch

    return DEFAULT_CHECKPOINT


def _torch_is_missing(checkpoint: Path | None, device: str) -> CheckpointError | DeviceError:
    """Why a checkpoint cannot be loaded in an installation without torch, and what to do.

    Raises `CheckpointError` for a file that torch could not read either.
    """
    if device not in ("auto", "cpu"):
        return DeviceError(
            f"{device} was asked for, but this installation runs on the CPU only: "
            "pip install 'purnet-serve[torch]'"
        )
    if checkpoint is None:
        return CheckpointError(
            "no engine is installed: pip install 'purnet-serve[openvino]' or 'purnet-serve[torch]'"
        )
    is_safetensors(checkpoint)  # raises for what is no checkpoint at all
    return CheckpointError(
        f"{checkpoint} is not an export, and this installation has no torch to read it with "
        "(pip install 'purnet-serve[torch]'). Where torch is installed, run "
        f"`purnet export {checkpoint} -o DIR`; DIR runs without it"
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
