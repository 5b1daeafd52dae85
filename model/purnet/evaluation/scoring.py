"""Which map is held against which truth, and the pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from purnet.data.maps import UnreadableError, read_map, read_truth, size_of
from purnet.data.pairs import (
    canonical_name,
    check_folder,
    files_by_stem,
    find_named,
    find_pairs,
    holds_layout,
    image_folder_beside,
)
from purnet.errors import EvaluationError
from purnet.evaluation.metrics import TRUTH_ABOVE, Scorer
from purnet.evaluation.results import ScoredImage, SetResult
from purnet.imaging import resize_mask

UInt8Array = NDArray[np.uint8]

_NAMED_AT_MOST = 5
"""Files that an error message lists before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class Case:
    """One image to score."""

    stem: str
    truth: Path
    photo: Path | None
    """A folder of masks may come without photos."""


MapOf = Callable[[Case], UInt8Array]
"""Answers a case with its saliency map, (H, W) uint8 of the truth's size."""


@dataclass(frozen=True, slots=True)
class Cases:
    """What of a data set can be scored, and what cannot."""

    name: str
    folder: Path
    cases: list[Case]
    missing: list[str] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)


def dataset_cases(dataset: str, root: Path | None) -> Cases:
    """The images of a data set: a folder in a known layout, or a set of the paper by its name.

    A name is looked up below `root`, by default the current folder; a folder of the very name
    given goes first when there is no root. Raises `DatasetError` when nothing is found.
    """
    name = canonical_name(dataset)
    if name is not None and (root is not None or not Path(dataset).is_dir()):
        folder = find_named(name, root or Path())
    elif root is not None:
        folder = root / dataset
    else:
        folder = Path(dataset)
    found = find_pairs(folder)
    return Cases(
        name or canonical_name(folder.name) or folder.resolve().name,
        folder,
        [Case(pair.stem, pair.mask, pair.image) for pair in found.pairs],
        left_out=found.skipped,
    )


def folder_cases(predictions: Path, truth: Path, *, resize: bool) -> tuple[Cases, MapOf]:
    """Saved maps paired by stem with the masks of `truth`, a folder of masks or a whole data set.

    Also returns what reads the map of a case, at its truth's size; it raises `UnreadableError`.
    Sizes are compared before anything is scored. Raises `DatasetError` for a folder that is not
    there or cannot be read, and `EvaluationError` when no prediction has a truth, or when sizes
    differ and `resize` is false.
    """
    for folder in (predictions, truth):
        check_folder(folder)
    left_out: list[tuple[Path, str]] = []
    maps = files_by_stem(predictions, left_out)
    masks, photos = _masks_and_photos(truth, left_out)
    left_out += [(maps[stem], "has no truth") for stem in sorted(maps.keys() - masks.keys())]
    cases, other_sizes = [], []
    for stem in sorted(maps.keys() & masks.keys()):
        try:
            size, truth_size = size_of(maps[stem]), size_of(masks[stem])
        except UnreadableError as error:
            left_out.append((error.path, error.reason))
            continue
        if size != truth_size:
            (w, h), (truth_w, truth_h) = size, truth_size
            other_sizes.append(f"{maps[stem].name} is {w}x{h}, its truth {truth_w}x{truth_h}")
        cases.append(Case(stem, masks[stem], photos.get(stem)))
    if not cases:
        raise EvaluationError(f"No file in {predictions} can be held against a mask in {truth}.")
    if other_sizes and not resize:
        raise EvaluationError(f"Sizes differ (--resize fits the maps): {_listed(other_sizes)}.")

    def saved_map(case: Case) -> UInt8Array:
        saliency = read_map(maps[case.stem])
        width, height = size_of(case.truth)
        if saliency.shape == (height, width):
            return saliency
        return np.asarray(resize_mask(saliency, (width, height)))

    work = Cases(
        canonical_name(truth.name) or truth.resolve().name,
        truth,
        cases,
        missing=sorted(masks.keys() - maps.keys()),
        left_out=left_out,
    )
    return work, saved_map


def score(work: Cases, map_of: MapOf, todo: Iterable[Case] | None = None) -> SetResult:
    """Score the cases of `work`, going past files that turn out broken and naming them.

    `todo` is `work.cases`, perhaps wrapped in a progress bar. Raises `EvaluationError` when not
    one image could be scored.
    """
    scorer = Scorer()
    scored: list[ScoredImage] = []
    empty_truths = 0
    left_out = list(work.left_out)
    for case in work.cases if todo is None else todo:
        try:
            truth = read_truth(case.truth)
            one = scorer.add(map_of(case), truth)
        except UnreadableError as error:
            left_out.append((error.path, error.reason))
            continue
        scored.append(ScoredImage(stem=case.stem, **one._asdict()))
        empty_truths += int(truth.max() <= TRUTH_ABOVE)
    if not scored:
        reasons = _listed([reason for _, reason in left_out])
        raise EvaluationError(f"Nothing in {work.folder} could be scored: {reasons}")
    return SetResult.of(
        work.name,
        work.folder,
        scorer.result(),
        scored,
        empty_truths=empty_truths,
        missing=work.missing,
        left_out=left_out,
    )


def _masks_and_photos(
    truth: Path, left_out: list[tuple[Path, str]]
) -> tuple[dict[str, Path], dict[str, Path]]:
    # A data set first: a picture that lies beside its folders does not make it a folder of masks.
    masks = {} if holds_layout(truth) else files_by_stem(truth, left_out)
    if not masks:
        found = find_pairs(truth)
        left_out += found.skipped
        return (
            {pair.stem: pair.mask for pair in found.pairs},
            {pair.stem: pair.image for pair in found.pairs},
        )
    photos = image_folder_beside(truth)
    return masks, files_by_stem(photos, []) if photos else {}


def _listed(things: list[str]) -> str:
    more = len(things) - _NAMED_AT_MOST
    return "; ".join(things[:_NAMED_AT_MOST]) + (f"; and {more} more" if more > 0 else "")
