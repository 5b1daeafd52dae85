"""The pairs a recipe trains and validates on, with their superpixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from purnet.data.dataset import is_held_out
from purnet.data.pairs import Pair, find_pairs
from purnet.errors import DatasetError
from purnet.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Pairs of all sources laid end to end, split into training and validation."""

    train: list[Pair]
    train_regions: list[Path]
    sizes: list[int]
    """How many training pairs each source gives, in the recipe's order."""
    validation: list[Pair]
    validation_regions: list[Path]
    skipped: list[tuple[Path, str]]
    """Files that were left out, and why."""


def load_data(
    recipe: Recipe,
    root: Path,
    cache_dir: Path,
    *,
    processes: int = 1,
    progress: Callable[[Iterator[Path], int], Iterable[Path]] = lambda paths, _total: paths,
) -> TrainingData:
    """Find the pairs of a recipe's sources below `root`; compute their superpixels once.

    `progress(paths, total)` may watch the superpixels as they come. Nothing is written below
    `root`. Raises `DatasetError` for a source without pairs or when the split leaves one side
    empty.
    """
    train: list[Pair] = []
    validation: list[Pair] = []
    sizes: list[int] = []
    skipped: list[tuple[Path, str]] = []
    for source in recipe.sources:
        found = find_pairs(root / source.folder)
        skipped += found.skipped
        held_out = [is_held_out(pair.stem, percent=recipe.held_out_percent) for pair in found.pairs]
        kept = [pair for pair, out in zip(found.pairs, held_out, strict=True) if not out]
        validation += [pair for pair, out in zip(found.pairs, held_out, strict=True) if out]
        if not kept:
            raise DatasetError(f"{root / source.folder} has no pair left to train on")
        train += kept
        sizes.append(len(kept))
    if not validation:
        raise DatasetError(
            f"no pair below {root} is held out for validation; raise held_out_percent"
        )
    images: Sequence[Path] = [pair.image for pair in (*train, *validation)]
    regions = list(
        progress(
            recipe.superpixels.compute_all(images, cache_dir, processes=processes), len(images)
        )
    )
    return TrainingData(
        train=train,
        train_regions=regions[: len(train)],
        sizes=sizes,
        validation=validation,
        validation_regions=regions[len(train) :],
        skipped=skipped,
    )
