"""Which map is held against which truth, and the pass over them in several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from purnet.data.pairs import (
    UnreadableError,
    check_folder,
    files_by_stem,
    find_pairs,
    holds_layout,
    image_folder_beside,
    read_map,
    read_truth,
    size_of,
)
from purnet.errors import EvaluationError
from purnet.evaluation.metrics import ImageScore, score_image
from purnet.evaluation.report import SetResult, canonical_name
from purnet.imaging import UInt8Array, resize_mask

_NAMED_AT_MOST = 5
"""Files that an error message lists before it says how many more there are."""

_IMAGES_A_PROCESS = 100
"""A process is started for that many images or more: starting one takes as long as scoring them."""

_WAITING_A_PROCESS = 4
"""Maps that wait for each process, so that none is idle and memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Case:
    """One image to score."""

    stem: str
    truth: Path
    photo: Path | None
    """A folder of masks may come without photos."""


MapOf = Callable[[Case], UInt8Array | Path]
"""Answers a case with its saliency map, (H, W) uint8 of the truth's size, or with its file.

Raises `UnreadableError` where there is none.
"""


@dataclass(frozen=True, slots=True)
class Cases:
    """What of a data set can be scored, and what cannot."""

    name: str
    folder: Path
    cases: list[Case]
    missing: list[str] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)


def dataset_cases(dataset: str, root: Path | None) -> Cases:
    """The images of a data set: a folder in a known layout, by its path or its name in `root`.

    Raises `DatasetError` when there is none.
    """
    folder = Path(dataset) if root is None else root / dataset
    found = find_pairs(folder)
    return Cases(
        _name(folder),
        folder,
        [Case(pair.stem, pair.mask, pair.image) for pair in found.pairs],
        left_out=found.skipped,
    )


def folder_cases(predictions: Path, truth: Path, *, resize: bool) -> tuple[Cases, MapOf]:
    """Saved maps paired by stem with the masks of `truth`, a folder of masks or a whole data set.

    Also returns what names the file of a case's map. Sizes are compared before anything is scored.
    Raises `DatasetError` for a folder that is not there or cannot be read, and `EvaluationError`
    when no prediction has a truth, or when sizes differ and `resize` is false.
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
    work = Cases(
        _name(truth),
        truth,
        cases,
        missing=sorted(masks.keys() - maps.keys()),
        left_out=left_out,
    )
    return work, lambda case: maps[case.stem]


def score(
    work: Cases,
    map_of: MapOf,
    *,
    processes: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> SetResult:
    """Score the cases of `work`, going past files that turn out broken and naming them.

    `map_of` is called in this process, in order, while at most `processes` others read truths and
    compute scores; 0 is a thread of this one. Scores do not depend on their number. `progress` is
    called after every case. Raises `EvaluationError` when not one image could be scored.
    """
    images: dict[str, ImageScore] = {}
    left_out = list(work.left_out)
    try:
        for case, outcome in _outcomes(work.cases, map_of, processes):
            if isinstance(outcome, ImageScore):
                images[case.stem] = outcome
            else:
                left_out.append(outcome)
            progress()
    except BrokenProcessPool as error:
        raise EvaluationError(
            "A process that scores was ended from outside; if memory is short, take fewer: "
            "--processes 1"
        ) from error
    if not images:
        reasons = _listed([reason for _, reason in left_out])
        raise EvaluationError(f"Nothing in {work.folder} could be scored: {reasons}")
    return SetResult.of(work.name, work.folder, images, missing=work.missing, left_out=left_out)


def fitted(saliency: UInt8Array | Path, truth: UInt8Array) -> UInt8Array:
    """A map, read where it is a file, at its truth's size. Raises `UnreadableError`."""
    levels = read_map(saliency) if isinstance(saliency, Path) else saliency
    if levels.shape == truth.shape:
        return levels
    height, width = truth.shape
    return np.asarray(resize_mask(levels, (width, height)))


Outcome = ImageScore | tuple[Path, str]
"""Scores of an image, or the file that cannot be used and why."""


def _outcomes(cases: list[Case], map_of: MapOf, processes: int) -> Iterator[tuple[Case, Outcome]]:
    """Each case with its outcome, in order."""
    processes = min(processes, len(cases) // _IMAGES_A_PROCESS)
    waiting: deque[tuple[Case, Future[Outcome]]] = deque()

    def first() -> tuple[Case, Outcome]:
        case, future = waiting.popleft()
        return case, future.result()

    with _pool(processes) as pool:
        for case in cases:
            waiting.append((case, _submit(pool, case, map_of)))
            if len(waiting) > _WAITING_A_PROCESS * max(processes, 1):
                yield first()
        while waiting:
            yield first()


def _pool(processes: int) -> Executor:
    if processes < 1:
        return ThreadPoolExecutor(1)
    # Spawned: a fork would inherit the locks of the engine's threads. An interrupt from the
    # keyboard reaches every process; this one ends the others.
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )


def _submit(pool: Executor, case: Case, map_of: MapOf) -> Future[Outcome]:
    try:
        return pool.submit(_outcome, map_of(case), case.truth)
    except UnreadableError as error:
        unusable: Future[Outcome] = Future()
        unusable.set_result((error.path, error.reason))
        return unusable


def _outcome(saliency: UInt8Array | Path, truth: Path) -> Outcome:
    """Runs in the pool. An `UnreadableError` does not survive the way back by itself."""
    try:
        levels = read_truth(truth)
        return score_image(fitted(saliency, levels), levels)
    except UnreadableError as error:
        return error.path, error.reason


def _name(folder: Path) -> str:
    """The paper's name of a set, else its folder's."""
    return canonical_name(folder.name) or folder.resolve().name


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
