"""Checkpoints in and out: safetensors with metadata.

A checkpoint of ours holds the tensors of one network and says, as metadata, what it is: variant,
input size, whether it has attentions. Weights of two or more dimensions may be stored in half
precision; statistics and biases stay float32, where a small number matters.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import variants
from model.errors import CheckpointError, ModelError
from model.purnet import PurNet

FORMAT = "purnet-1"
DEFAULT_CHECKPOINT = Path(__file__).parent / "weights" / "purnet-lite0.safetensors"
"""The weights this package ships."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    variant: str
    input_size: int
    """Side of the square photos are resized to, in pixels."""
    attention: bool
    """False for a network of training stage 1."""
    notes: dict[str, str]
    """Anything else: where the file came from, how it was trained."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(part)` and move its file to `path`: a kill at any moment leaves old or new."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save(state: dict[str, Tensor], path: Path, info: CheckpointInfo, *, half: bool) -> None:
    """Write a network's tensors with what they are; `half` stores weights in 16 bits."""
    tensors = {
        name: tensor.detach()
        .to("cpu", torch.half if half and tensor.ndim > 1 else None)
        .contiguous()
        for name, tensor in state.items()
    }
    metadata = {
        "format": FORMAT,
        "variant": info.variant,
        "input_size": str(info.input_size),
        "attention": json.dumps(info.attention),
        **info.notes,
    }
    write_atomically(path, lambda part: save_file(tensors, part, metadata))


def read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Read a checkpoint of ours: what it is and its tensors, floating ones as float32.

    Raises `CheckpointError` for a file that is missing, truncated or foreign.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} does not say that it is a PurNet checkpoint ({FORMAT})")
    try:
        info = CheckpointInfo(
            variant=metadata.pop("variant"),
            input_size=int(metadata.pop("input_size")),
            attention=bool(json.loads(metadata.pop("attention"))),
            notes=metadata,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata is incomplete: {error}") from error
    return info, {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def load(path: Path = DEFAULT_CHECKPOINT) -> PurNet:
    """Load a checkpoint, strictly, in evaluation mode.

    Raises `CheckpointError` naming the first tensors that are missing, extra or misshapen.
    """
    return load_with_info(path)[0]


def load_with_info(path: Path = DEFAULT_CHECKPOINT) -> tuple[PurNet, CheckpointInfo]:
    """Load a checkpoint as `load` does, with what it says of itself."""
    info, tensors = read(path)
    try:
        network = variants.build(info.variant, attention=info.attention)
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error
    check_fit(path, network, tensors)
    network.load_state_dict(tensors)
    return network.eval(), info


def check_fit(path: Path, network: PurNet, tensors: dict[str, Tensor]) -> None:
    """Raise `CheckpointError` unless the tensors are just those of the network."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {found[name]} for {expected[name]}"
            for name in expected
            if name in found and found[name] != expected[name]
        ],
    }
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in faults.items() if names
    ]
    if told:
        raise CheckpointError(f"{path} does not fit the network: {'; '.join(told)}")
