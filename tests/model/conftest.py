"""Weights to test with: random ones, and the numeric reference where this machine has it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import released, variants


def _draw(name: str, shape: list[int], kind: str) -> Tensor:
    """One tensor of the reference's weights, by its page's recipe."""
    if kind == "count":
        return torch.tensor(0)
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    draw = draw.astype(np.float32)
    values = {
        "conv": lambda: draw * float(np.sqrt(2 / np.prod(shape[1:]))),
        "deconv": lambda: draw * 0.1 + 1 / (shape[0] * 4),
        "bn_weight": lambda: 0.72 + 0.05 * draw,
        "bn_var": lambda: 1 + 0.1 * np.abs(draw),
        "prelu": lambda: 0.25 + 0.02 * draw,
        "bias": lambda: 0.1 * draw,
    }
    return torch.from_numpy(np.asarray(values[kind]()))


@dataclass(frozen=True)
class Reference:
    """What the authors' network computes for weights and an input that anybody can make."""

    folder: Path

    def tensors(self, stage: int) -> list[dict[str, Any]]:
        """Name, shape and kind of every tensor of `stage{1,3}.pth`."""
        found: list[dict[str, Any]] = json.loads(
            (self.folder / f"stage{stage}_state_dict.json").read_text()
        )
        return found

    def state(self, stage: int) -> dict[str, Tensor]:
        """A state dict in their layout."""
        return {t["name"]: _draw(t["name"], t["shape"], t["kind"]) for t in self.tensors(stage)}

    def outputs(self, stage: int) -> dict[str, Tensor]:
        """What their network returns, sigmoid or tanh applied."""
        with np.load(self.folder / f"stage{stage}_outputs.npz") as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def images(self) -> Tensor:
        """(2, 3, 320, 320) float32, as already normalised."""
        draw = np.random.default_rng(1000).standard_normal((2, 3, 320, 320))
        return torch.from_numpy(draw.astype(np.float32))


@pytest.fixture(scope="session")
def reference(require: Any) -> Reference:
    """From `PURNET_REFERENCE`, or `reference` beside the data folder `PURNET_DATA`."""
    data = os.environ.get("PURNET_DATA")
    folder = os.environ.get("PURNET_REFERENCE") or (data and Path(data).parent / "reference")
    require(folder, "set PURNET_REFERENCE or PURNET_DATA to find the numeric reference")
    found = Path(folder or "") / "purnet-resnet50"
    require(found.is_dir(), f"there is no {found}")
    return Reference(found)


State = dict[str, Tensor]


def _state(variant: str, *, attention: bool) -> State:
    torch.manual_seed(1)
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 3
        for name, tensor in variants.build(variant, attention=attention).state_dict().items()
    }


@pytest.fixture(scope="session")
def random_state() -> Callable[..., State]:
    """Of a variant: tensors unlike those that a network starts with, statistics included."""
    return _state


@pytest.fixture(scope="module")
def lite() -> State:
    return _state("purnet-lite0", attention=True)


@pytest.fixture(scope="module")
def stage1() -> State:
    """A state dict of the authors' stage 1."""
    ours = _state(released.VARIANT, attention=False)
    return {released.theirs(k): v for k, v in ours.items() if not k.startswith("normalize.")}


@pytest.fixture
def pth(tmp_path: Path) -> Callable[[Any], Path]:
    """Saves anything as a file in the authors' format."""

    def write(content: Any) -> Path:
        path = tmp_path / "some.pth"
        torch.save(content, path)
        return path

    return write
