"""A training run as data: a recipe of stages, read from TOML.

The paper trains in three stages: the pyramids alone, then both attentions with them, then the
structural similarity loss again. A stage says which parts there are, what is minimised, over how
many iterations and at which learning rate.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, ValidationError, ValidationInfo, field_validator

from purnet.data.augment import Augmentation
from purnet.data.settings import Count, Fraction, NotNegative, Positive, Settings
from purnet.data.superpixels import Superpixels
from purnet.errors import ModelError, TrainingError
from purnet.network import variants

Part = Literal["backbone", "purification", "promotion", "rectification"]

ATTENTION_LOSSES = ("promotion", "object", "error")
"""Weights of `LossWeights` whose heads a network without attentions lacks."""


class LossWeights(Settings):
    """What each term counts in the sum; a term of weight 0 is not computed."""

    saliency: NotNegative = 1.0
    structure: NotNegative = 0.0
    iou: NotNegative = 0.0
    s_measure: NotNegative = 0.0
    promotion: NotNegative = 0.0
    object: NotNegative = 0.0
    error: NotNegative = 0.0


class Corrections(Settings):
    """What training corrects in the released code; false trains as the released code does."""

    single_sigmoid: StrictBool = True
    """The structural similarity loss compares region means of saliency. Released: of its sigmoid,
    so that they lie between 0.5 and 0.73 and no prediction can separate regions as far as the
    truth does."""
    every_group_decays: StrictBool = True
    """The schedule lowers every learning rate. Released: the backbone's alone; pyramids and heads
    end a stage at the rate they began it with."""
    fill_is_no_region: StrictBool = True
    """Pixels that a rotation fills in belong to no region. Released: to region 0, a real one."""


class Stage(Settings):
    """One stage of training."""

    attention: StrictBool
    """Whether promotion and rectification exist yet."""
    iterations: Count
    batch_size: Count
    image_size: Count
    """Side of the training squares, in pixels."""
    min_image_size: Count | None = None
    """With it, every batch has a side of its own, drawn from here to `image_size` in steps of the
    coarsest stride."""
    learning_rate: Positive
    """The highest of the stage, after its warm-up and before any factor."""
    weights: LossWeights
    boundary: NotNegative = 0.0
    """How much more the saliency loss counts pixels near the object's boundary: their weight is
    1 + boundary * |local mean of the truth - truth|, brought to a mean of 1."""
    isolate: StrictBool = False
    """Keep each loss to its own parts, as the paper does."""
    freeze_backbone_statistics: StrictBool = False
    """Normalise the backbone's features by the statistics it begins the stage with, ImageNet's in
    a first stage, instead of each batch's."""
    schedule: Literal["cosine", "poly"] = "cosine"
    power: NotNegative = 0.9
    """Of the `poly` schedule."""
    final: Fraction = 0.0
    """Part of the learning rate that it falls to at the stage's end."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Iterations over which the learning rate rises to its full value; fewer than the stage's."""
    factors: dict[Part, NotNegative] = Field(default_factory=dict)
    """Learning rates of parts, relative to the stage's."""
    augmentation: Augmentation | None = None
    """In place of the recipe's."""
    average_from: Count | None = None
    """With it, the averaged weights at each validation from this iteration on are kept, and their
    mean is written at the end of the stage."""

    @field_validator("average_from")
    @classmethod
    def _reached(cls, average_from: int | None, info: ValidationInfo) -> int | None:
        if average_from is not None and average_from > info.data.get("iterations", average_from):
            raise ValueError(f"the stage ends before iteration {average_from}")
        return average_from

    @field_validator("min_image_size")
    @classmethod
    def _not_above_the_largest(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and size > info.data.get("image_size", size):
            raise ValueError(f"{size} is more than image_size")
        return size

    @field_validator("warmup")
    @classmethod
    def _shorter_than_the_stage(cls, warmup: int, info: ValidationInfo) -> int:
        if warmup and warmup >= info.data.get("iterations", warmup + 1):
            raise ValueError(f"{warmup} iterations of warm-up leave none to train in")
        return warmup

    @field_validator("weights")
    @classmethod
    def _trainable(cls, weights: LossWeights, info: ValidationInfo) -> LossWeights:
        given = [name for name, weight in weights.model_dump().items() if weight]
        if not given:
            raise ValueError("no loss has a weight")
        headless = [name for name in ATTENTION_LOSSES if name in given]
        if headless and not info.data.get("attention", True):
            raise ValueError(f"there is no {headless[0]} without attention")
        return weights

    def sizes(self, stride: int) -> list[int]:
        """Sides that the stage's squares have, for a network of this coarsest stride."""
        return list(range(self.min_image_size or self.image_size, self.image_size + 1, stride))

    def rate(self, iteration: int) -> float:
        """Learning-rate factor at an iteration of this stage, from 0."""
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        done = (iteration - self.warmup) / (self.iterations - self.warmup)
        if self.schedule == "cosine":
            falling = (1 + math.cos(math.pi * done)) / 2
        else:
            falling = (1 - done) ** self.power
        return self.final + (1 - self.final) * falling


class Source(Settings):
    """A data set to train on."""

    folder: str
    """Below the data root; `.` is the root itself."""
    share: NotNegative = 1.0
    """How much of every epoch comes from it, relative to the others' shares; 0 takes its held-out
    pairs alone."""


class Optimizer(Settings):
    """Which optimizer, and how learning rate and decay differ between tensors."""

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
    decay_biases: StrictBool = True
    """Whether weight decay applies to biases too."""


class Recipe(Settings):
    """Everything a training run depends on besides its data."""

    variant: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    epoch_samples: Annotated[int, Field(ge=0)]
    """Samples between two validations; 0 is as many as there are pairs. Shares apply either way."""
    sources: list[Source]
    stages: Annotated[list[Stage], Field(min_length=1)]
    optimizer: Optimizer = Optimizer()
    augmentation: Augmentation = Augmentation()
    superpixels: Superpixels = Superpixels()
    level_weights: list[NotNegative] = Field(default_factory=list)
    """Weight of each level's losses, finest first; empty is 1 everywhere."""
    ema: Fraction = 0.0
    """Decay of the averaged weights that are validated and exported; 0 is no averaging."""
    held_out_percent: Annotated[NotNegative, Field(le=100)] = 4.0
    """Part of the pairs that is kept for validation."""
    cuda_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """What training computes convolutions in on a CUDA device, and validation in TF32 or float32; a
    CPU computes in float32."""
    corrections: Corrections = Corrections()
    """Where training departs from the released code."""

    @field_validator("variant")
    @classmethod
    def _known(cls, variant: str) -> str:
        try:
            variants.get(variant)
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
    def _fitting(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        _check_sizes(stages, _strides(info))
        for number, (before, stage) in enumerate(pairwise(stages), 2):
            if before.attention and not stage.attention:
                raise ValueError(f"stage {number} would drop the attention that the one before has")
        return stages

    @field_validator("level_weights")
    @classmethod
    def _levelled(cls, weights: list[float], info: ValidationInfo) -> list[float]:
        if weights and not any(weights):
            raise ValueError("no level has a weight")
        _check_levels(weights, _strides(info))
        return weights

    @property
    def needs_superpixels(self) -> bool:
        """Whether any stage compares regions."""
        return any(stage.weights.structure for stage in self.stages)

    @property
    def digest(self) -> str:
        """SHA-256 of all settings, those left at their defaults included."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return sha256(text.encode()).hexdigest()

    def check_network(self, strides: Sequence[int]) -> None:
        """Raise `TrainingError` where the strides of a network's levels do not suit the recipe.

        Reading a recipe does the same for variants whose strides are known without building them.
        """
        try:
            _check_sizes(self.stages, strides)
            _check_levels(self.level_weights, strides)
        except ValueError as error:
            raise TrainingError(f"the recipe does not suit {self.variant}: {error}") from None


def _strides(info: ValidationInfo) -> Sequence[int]:
    """Of the variant's levels; empty where they are not known yet."""
    return variants.get(info.data["variant"]).strides or () if "variant" in info.data else ()


def _check_sizes(stages: Sequence[Stage], strides: Sequence[int]) -> None:
    for number, stage in enumerate(stages, 1):
        for name in ("image_size", "min_image_size"):
            size = getattr(stage, name)
            if strides and size is not None and size % strides[-1]:
                raise ValueError(
                    f"{name} {size} of stage {number} is not a multiple of {strides[-1]}"
                )


def _check_levels(weights: Sequence[float], strides: Sequence[int]) -> None:
    if weights and strides and len(weights) != len(strides):
        raise ValueError(f"{len(weights)} weights for a network of {len(strides)} levels")


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
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
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
        reason = first["msg"].removeprefix("Value error, ")
        raise TrainingError(f"{path}: {where}: {reason}") from None
