"""Checkpoints: read, written, converted and averaged.

A checkpoint of ours is a safetensors file: the tensors of one network and, as metadata, what it
is: variant, input size, whether it has attentions. Weights of two or more dimensions may be stored
in half precision; statistics, biases and the constants that photos are normalised by stay float32,
where a small number matters.

Read besides: the authors' `stage1.pth`, `stage2.pth` and `stage3.pth` (`purnet.network.released`)
and the `resume.pt` of a training run. Those are pickles, of which PyTorch's restricted reader takes
tensors and plain containers only; what would run code is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from purnet.errors import CheckpointError, ModelError
from purnet.io import sha256_of, write_atomically
from purnet.network import released, variants
from purnet.network.backbones import ResNet50
from purnet.network.checkpoint_file import is_safetensors
from purnet.network.purnet import Normalize, PurNet

FORMAT = "purnet-1"
DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "weights" / "purnet-lite0-gc.safetensors"
"""The weights this package ships."""

_SCALE = "scale_logits"
"""The note that says by how much logits were scaled."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint's metadata."""

    variant: str
    input_size: int
    """Side of the square photos are resized to, in pixels."""
    attention: bool
    """False for a network of training stage 1."""
    notes: dict[str, str] = field(default_factory=dict)
    """Anything else: where the file came from, how it was trained."""


def save(state: dict[str, Tensor], path: Path, info: CheckpointInfo, *, half: bool) -> None:
    """Write a network's tensors with what they are; `half` stores weights in 16 bits.

    Raises `CheckpointError` for numbers that are not finite, or not in 16 bits.
    """
    tensors = {
        name: tensor.detach()
        .to("cpu", torch.half if half and _is_weight(name, tensor) else None)
        .contiguous()
        for name, tensor in state.items()
    }
    _check_finite(f"{path} not written", tensors)
    metadata = {
        "format": FORMAT,
        "variant": info.variant,
        "input_size": str(info.input_size),
        "attention": json.dumps(info.attention),
        **info.notes,
    }
    # Not `save_file`, which makes files that no other user may read.
    write_atomically(path, lambda part: part.write_bytes(to_bytes(tensors, metadata)))


def _is_weight(name: str, tensor: Tensor) -> bool:
    return tensor.ndim > 1 and not name.startswith("normalize.")


def read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Read a checkpoint: what it is and its tensors by our names, floating ones as float32.

    Raises `CheckpointError` for a file that is missing, damaged or of another kind, naming the
    first tensors that are missing, extra or misshapen.
    """
    info, tensors, _ = _open(path)
    return info, tensors


def load(path: Path = DEFAULT_CHECKPOINT) -> PurNet:
    """Load a checkpoint, strictly, in evaluation mode. Raises as `read` does."""
    return load_with_info(path)[0]


def load_with_info(path: Path = DEFAULT_CHECKPOINT) -> tuple[PurNet, CheckpointInfo]:
    """Load a checkpoint as `load` does, with its metadata."""
    info, tensors, network = _open(path)
    network.load_state_dict(tensors)
    return network.eval(), info


def convert(
    source: Path,
    target: Path,
    *,
    half: bool,
    average_with: Sequence[Path] = (),
    scale_logits: float = 1.0,
) -> CheckpointInfo:
    """Write any checkpoint `read` takes as one of ours, which says where it came from.

    `average_with` names checkpoints of the same network that were trained on from common weights:
    the mean of their weights and of the source's is written, which is often better than each
    (Wortsman et al., *Model soups*, ICML 2022). `scale_logits` multiplies the logits of the
    saliency map, which makes it crisper if above 1; the note `scale_logits` holds the product of
    this factor and earlier ones. Raises as `read` does, and `CheckpointError` for checkpoints of
    different networks, for those whose logits were scaled by different factors and where `target`
    cannot be written or is one of them.
    """
    sources = [source, *average_with]
    if target.exists() and any(target.samefile(one) for one in sources if one.exists()):
        raise CheckpointError(f"{target} is one of the checkpoints to read: name another to write")
    info, tensors = read(source)
    scaled = logits_scale(source, info)
    # In double precision: the mean of equal numbers is that number.
    totals = {name: x.double() for name, x in tensors.items() if x.is_floating_point()}
    for other in average_with:
        other_info, others = read(other)
        if replace(other_info, notes={}) != replace(info, notes={}):
            raise CheckpointError(
                f"{other} cannot be averaged with {source}: {_kind(other_info)}, not {_kind(info)}"
            )
        other_scaled = logits_scale(other, other_info)
        if other_scaled != scaled:
            raise CheckpointError(
                f"{other} cannot be averaged with {source}: its logits were scaled by "
                f"{other_scaled:g}, not {scaled:g}"
            )
        for name, total in totals.items():
            total += others[name]
    tensors |= {name: (total / len(sources)).float() for name, total in totals.items()}
    origin = {
        "source": ", ".join(path.name for path in sources),
        "source_sha256": ", ".join(sha256_of(path) for path in sources),
    }
    if scale_logits != 1:
        network = variants.build(info.variant, attention=info.attention)
        network.load_state_dict(tensors)
        network.scale_logits(scale_logits)
        tensors = network.state_dict()
    # How one of several was trained is not how their mean was.
    notes = origin if average_with else info.notes | origin
    notes.pop(_SCALE, None)
    info = replace(info, notes=notes | scale_note(scaled * scale_logits))
    try:
        save(tensors, target, info, half=half)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error
    return info


def scale_note(scale: float) -> dict[str, str]:
    """The note of a checkpoint whose logits were scaled by this much; none for 1."""
    return {} if scale == 1 else {_SCALE: f"{scale:g}"}


def logits_scale(path: Path, info: CheckpointInfo) -> float:
    """By how much a checkpoint's logits were scaled before, 1 for not at all.

    Raises `CheckpointError` for a note that is no number.
    """
    note = info.notes.get(_SCALE, "1")
    try:
        return float(note)
    except ValueError:
        raise CheckpointError(f"{path}: its {_SCALE} {note!r} is no number") from None


def _kind(info: CheckpointInfo) -> str:
    parts = "with" if info.attention else "without"
    return f"{info.variant} for {info.input_size} pixels {parts} attentions"


def read_state_dict(path: Path) -> dict[str, Any]:
    """The state dict of any network, from safetensors or from what `torch.save` wrote.

    Raises `CheckpointError` for any other file, one that would run code included.
    """
    return _read_safetensors(path)[1] if is_safetensors(path) else _read_pickle(path)


def _open(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor], PurNet]:
    """Info and tensors that fit, and a network with random weights for them to fill."""
    name_in_file: Callable[[str], str] = str
    if is_safetensors(path):
        metadata, tensors = _read_safetensors(path)
        info = _info(path, metadata)
    elif (content := _read_pickle(path)).keys() >= _RESUME_KEYS:
        info, tensors = _from_resume(path, content)
    else:
        info, tensors = _from_released(path, content)
        name_in_file = released.theirs
    try:
        network = variants.build(info.variant, attention=info.attention)
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if info.input_size <= 0 or info.input_size % network.stride:
        raise CheckpointError(
            f"{path}: its input size {info.input_size} is not a multiple of {network.stride}"
        )
    _check_fit(path, network, tensors, name_in_file)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
    _check_finite(str(path), tensors)
    return info, tensors, network


def _read_pickle(path: Path) -> dict[str, Any]:
    """A dict of tensors (on the CPU) and plain containers."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a file of another kind
        raise CheckpointError(
            f"{path} is not a whole PyTorch or safetensors file, or holds objects that could run "
            "code; only tensors are read"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(key): value for key, value in content.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut short or damaged: download it again") from error


def _info(path: Path, metadata: dict[str, str]) -> CheckpointInfo:
    """The metadata of a checkpoint of ours."""
    notes = dict(metadata)
    if notes.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} does not say that it is a PurNet checkpoint ({FORMAT})")
    try:
        return CheckpointInfo(
            variant=notes.pop("variant"),
            input_size=int(notes.pop("input_size")),
            attention=bool(json.loads(notes.pop("attention"))),
            notes=notes,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata is incomplete: {error}") from error


_RESUME_KEYS = frozenset({"variant", "stage", "iteration", "averaged"})


def _from_resume(path: Path, state: dict[str, Any]) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """The averaged weights of an unfinished training run (`purnet.training.resume.RunState`)."""
    tensors = _tensors(path, state["averaged"])
    variant, stage, iteration = state["variant"], state["stage"], state["iteration"]
    if not isinstance(variant, str) or not isinstance(stage, int):
        raise CheckpointError(f"{path} does not say which variant was trained, and how far")
    info = CheckpointInfo(
        variant=variant,
        input_size=_input_size(path, variant),
        attention=any(name.startswith("promotion.") for name in tensors),
        notes={
            "trained": f"stage {stage + 1}, iteration {iteration}",
            **scale_note(state.get("logits_scale", 1.0)),
        },
    )
    return info, tensors


def _from_released(path: Path, state: dict[str, Any]) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """A bare state dict of the authors, in any order, its names with or without `module.`."""
    theirs = _tensors(path, state)
    tensors = {released.ours(name): tensor for name, tensor in theirs.items()}
    if len(tensors) < len(theirs):
        raise CheckpointError(f"{path} holds tensors twice, with and without {released.WRAPPER!r}")
    # Their pipeline normalises before the network.
    constants = Normalize(mean=ResNet50.mean, std=ResNet50.std).state_dict()
    info = CheckpointInfo(
        variant=released.VARIANT,
        input_size=_input_size(path, released.VARIANT),
        attention=released.has_attention(theirs),
    )
    return info, tensors | {f"normalize.{name}": value for name, value in constants.items()}


def _input_size(path: Path, variant: str) -> int:
    try:
        return variants.get(variant).input_size
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _tensors(path: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path} is not a state dict: {', '.join(others[:3])} are not tensors"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _check_fit(
    path: Path,
    network: PurNet,
    tensors: dict[str, Tensor],
    name_in_file: Callable[[str], str],
) -> None:
    """Raise `CheckpointError` unless the tensors are just those of the network.

    `name_in_file` gives the name a file of its kind has for ours.
    """
    expected = network.state_dict()
    faults = {
        "missing": [name_in_file(name) for name in expected if name not in tensors],
        "extra": [name_in_file(name) for name in tensors if name not in expected],
        "misshapen": [
            f"{name_in_file(name)} {_form(tensors[name])} for {_form(expected[name])}"
            for name in expected
            if name in tensors and _form(tensors[name]) != _form(expected[name])
        ],
    }
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in faults.items() if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the network: {'; '.join(problems)}")


def _check_finite(about: str, tensors: dict[str, Tensor]) -> None:
    """Raise `CheckpointError` where a tensor holds a NaN or an infinity."""
    faulty = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if faulty:
        raise CheckpointError(
            f"{about}: {len(faulty)} tensors with numbers that are not finite "
            f"({', '.join(faulty[:3])})"
        )


def _form(tensor: Tensor) -> str:
    """Shape, and whatever a plain float tensor would not be: counters are integers."""
    odd = [str(tensor.dtype)] if not tensor.is_floating_point() else []
    odd += [str(tensor.layout)] if tensor.layout is not torch.strided else []
    odd += [tensor.device.type] if tensor.device.type != "cpu" else []
    return " ".join([str(tuple(tensor.shape)), *odd])
