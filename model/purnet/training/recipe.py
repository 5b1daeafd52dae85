"""A training run as data: a recipe of stages, read from TOML.

The paper trains in three stages: the pyramids alone, then both attentions with them, then the
structural similarity loss again. A stage says which parts there are, what is minimised, over how
many iterations and at which learning rate.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from purnet.data.dataset import Augmentation
from purnet.data.ranges import Count, Fraction, NotNegative, Positive
from purnet.data.superpixels import Superpixels
from purnet.data.terse import TerseRepr
from purnet.errors import ModelError, TrainingError
from purnet.network import variants
from purnet.training.corrections import Corrections
from purnet.training.losses import LossWeights

Part = Literal["backbone", "purification", "promotion", "rectification"]

ATTENTION_LOSSES = ("promotion", "object", "error")
"""Weights of `LossWeights` whose heads a network without attentions lacks."""


@dataclass(frozen=True, kw_only=True, repr=False, config=ConfigDict(extra="forbid"))
class Stage(TerseRepr):
    """One stage of training."""

    attention: StrictBool
    """Whether promotion and rectification exist yet."""
    iterations: Count
    batch_size: Count
    image_size: Count
    """Side of the training squares, in pixels."""
    learning_rate: Positive
    """At the stage's first iteration, of what no factor changes."""
    weights: LossWeights
    isolate: StrictBool = False
    """Keep each loss to its own parts, as the paper does."""
    schedule: Literal["cosine", "poly"] = "cosine"
    power: NotNegative = 0.9
    """Of the `poly` schedule."""
    final: Fraction = 0.0
    """Part of the learning rate that is left at the stage's last iteration."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Iterations over which the learning rate rises from 0."""
    factors: dict[Part, NotNegative] = field(default_factory=dict, repr=False)
    """Learning rates of parts, relative to the stage's."""
    augmentation: Augmentation | None = field(default=None, repr=False)
    """In place of the recipe's."""

    @field_validator("weights")
    @classmethod
    def _trainable(cls, weights: LossWeights, info: ValidationInfo) -> LossWeights:
        given = [name for name, weight in asdict(weights).items() if weight]
        if not given:
            raise ValueError("no loss has a weight")
        headless = [name for name in ATTENTION_LOSSES if name in given]
        if headless and not info.data.get("attention", True):
            raise ValueError(f"there is no {headless[0]} without attention")
        return weights

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
    share: NotNegative = 1.0
    """How much of every epoch comes from it, relative to the others' shares."""


@dataclass(frozen=True, kw_only=True, repr=False, config=ConfigDict(extra="forbid"))
class Optimiser(TerseRepr):
    """Which optimiser, and how learning rate and decay differ between tensors."""

    name: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NotNegative = 1e-4
    momentum: Fraction = 0.9
    """Of SGD."""
    backbone_factor: NotNegative = 1.0
    """Learning rate of the backbone, relative to the rest."""
    bias_factor: NotNegative = 1.0
    """Learning rate of biases, relative to their weights."""
    clip_norm: Positive | None = None
    """Gradients are scaled down to this norm where theirs is larger."""
    decay_biases: StrictBool = field(default=True, repr=False)
    """Whether weight decay pulls at biases too."""


@dataclass(frozen=True, kw_only=True, repr=False, config=ConfigDict(extra="forbid"))
class Recipe(TerseRepr):
    """Everything a training run depends on besides its data."""

    variant: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    epoch_samples: Annotated[int, Field(ge=0)]
    """Samples between two validations; 0 is every pair once."""
    sources: list[Source]
    stages: Annotated[list[Stage], Field(min_length=1)]
    optimiser: Optimiser = field(default_factory=Optimiser)
    augmentation: Augmentation = field(default_factory=Augmentation)
    superpixels: Superpixels = field(default_factory=Superpixels)
    level_weights: list[NotNegative] = field(default_factory=list)
    """Weight of each level's losses, finest first; empty is 1 everywhere."""
    ema: Fraction = 0.0
    """Decay of the averaged weights that are validated and exported; 0 is no averaging."""
    held_out_percent: Annotated[NotNegative, Field(le=100)] = 4.0
    """Part of the pairs that is kept for validation."""
    corrections: Corrections = field(default_factory=Corrections, repr=False)
    """Where training departs from the released code."""

    @field_validator("variant")
    @classmethod
    def _known(cls, variant: str) -> str:
        try:
            _strides(variant)
        except ModelError as error:
            raise ValueError(error) from None
        return variant

    @field_validator("sources")
    @classmethod
    def _shared(cls, sources: list[Source]) -> list[Source]:
        if not any(source.share for source in sources):
            raise ValueError("no source has a share")
        return sources

    @field_validator("stages")
    @classmethod
    def _divisible(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        if "variant" in info.data:
            stride = _strides(info.data["variant"])[-1]
            for number, stage in enumerate(stages, 1):
                if stage.image_size % stride:
                    raise ValueError(
                        f"image_size {stage.image_size} of stage {number} is not a multiple of "
                        f"{stride}"
                    )
        return stages

    @field_validator("level_weights")
    @classmethod
    def _levelled(cls, weights: list[float], info: ValidationInfo) -> list[float]:
        if weights and "variant" in info.data:
            levels = len(_strides(info.data["variant"]))
            if len(weights) != levels:
                raise ValueError(
                    f"{len(weights)} weights, but {info.data['variant']} has {levels} levels"
                )
        if weights and not any(weights):
            raise ValueError("no level has a weight")
        return weights


@cache
def _strides(variant: str) -> tuple[int, ...]:
    """Of each level of a variant. Raises `ModelError` for an unknown one."""
    with torch.random.fork_rng(devices=[]):
        return variants.get(variant).backbone().strides


def bundled_recipes() -> dict[str, Path]:
    """The recipes this package ships, by name."""
    folder = Path(str(files("purnet.training"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by bundled name or from a file.

    Raises `TrainingError` naming the file and the first wrong entry.
    """
    path = bundled_recipes().get(str(name), Path(name))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Recipe).validate_python(table)
    except FileNotFoundError:
        known = ", ".join(bundled_recipes())
        raise TrainingError(f"no recipe {name}: neither a file nor one of {known}") from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        told = first["msg"].removeprefix("Value error, ")
        raise TrainingError(f"{path}: {where}: {told}") from None
