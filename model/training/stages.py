"""A training run as data: a recipe of stages, read from TOML.

The paper trains in three stages: the pyramids alone, then both attentions with them, then the
structural similarity loss again. A stage says which parts there are, what is minimised, over how
many iterations and at which learning rate.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import field
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from model.errors import TrainingError
from model.training.corrections import Corrections
from model.training.data import Augmentation
from model.training.losses import LossWeights
from model.training.superpixels import Superpixels
from model.training.terse import TerseRepr

Part = Literal["backbone", "purification", "promotion", "rectification"]


@dataclass(frozen=True, kw_only=True, repr=False, config=ConfigDict(extra="forbid"))
class Stage(TerseRepr):
    """One stage of training."""

    attention: bool
    """Whether promotion and rectification exist yet."""
    iterations: int
    batch_size: int
    image_size: int
    """Side of the training squares, in pixels."""
    learning_rate: float
    """At the stage's first iteration, of what no factor changes."""
    weights: LossWeights
    isolate: bool = False
    """Keep each loss to its own parts, as the paper does."""
    schedule: Literal["cosine", "poly"] = "cosine"
    power: float = 0.9
    """Of the `poly` schedule."""
    final: float = 0.0
    """Part of the learning rate that is left at the stage's last iteration."""
    warmup: int = 0
    """Iterations over which the learning rate rises from 0."""
    factors: dict[Part, float] = field(default_factory=dict, repr=False)
    """Learning rates of parts, relative to the stage's."""
    augmentation: Augmentation | None = field(default=None, repr=False)
    """In place of the recipe's."""

    def rate(self, iteration: int) -> float:
        """Learning-rate factor at an iteration of this stage, from 0."""
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        done = (iteration - self.warmup) / max(1, self.iterations - self.warmup)
        if self.schedule == "cosine":
            falling = (1 + math.cos(math.pi * done)) / 2
        else:
            falling = (1 - done) ** self.power
        return self.final + (1 - self.final) * falling


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Source:
    """A data set to train on."""

    folder: str
    """Below the data root; `.` is the root itself."""
    share: float = 1.0
    """How much of every epoch comes from it, relative to the others' shares."""


@dataclass(frozen=True, kw_only=True, repr=False, config=ConfigDict(extra="forbid"))
class Optimiser(TerseRepr):
    """Which optimiser, and how learning rate and decay differ between tensors."""

    name: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """Of SGD."""
    backbone_factor: float = 1.0
    """Learning rate of the backbone, relative to the rest."""
    bias_factor: float = 1.0
    """Learning rate of biases, relative to their weights."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm where theirs is larger."""
    decay_biases: bool = field(default=True, repr=False)
    """Whether weight decay pulls at biases too."""


@dataclass(frozen=True, kw_only=True, repr=False, config=ConfigDict(extra="forbid"))
class Recipe(TerseRepr):
    """Everything a training run depends on besides its data."""

    variant: str
    seed: int
    epoch_samples: int
    """Samples between two validations; 0 is every pair once."""
    sources: list[Source]
    stages: list[Stage]
    optimiser: Optimiser = field(default_factory=Optimiser)
    augmentation: Augmentation = field(default_factory=Augmentation)
    superpixels: Superpixels = field(default_factory=Superpixels)
    level_weights: list[float] = field(default_factory=list)
    """Weight of each level's losses, finest first; empty is 1 everywhere."""
    ema: float = 0.0
    """Decay of the averaged weights that are validated and exported; 0 is no averaging."""
    held_out_percent: float = 4.0
    """Part of the pairs that is kept for validation."""
    corrections: Corrections = field(default_factory=Corrections, repr=False)
    """Where training departs from the released code."""


def bundled_recipes() -> dict[str, Path]:
    """The recipes this package ships, by name."""
    folder = Path(str(files("model.training"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by bundled name or from a file.

    Raises `TrainingError` naming the file and the first wrong entry.
    """
    path = bundled_recipes().get(str(name), Path(name))
    try:
        table = tomllib.loads(path.read_text())
        return TypeAdapter(Recipe).validate_python(table)
    except FileNotFoundError:
        known = ", ".join(bundled_recipes())
        raise TrainingError(f"no recipe {name}: neither a file nor one of {known}") from None
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TrainingError(f"{path}: {where}: {first['msg']}") from None
