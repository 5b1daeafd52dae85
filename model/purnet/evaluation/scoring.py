"""Which maps are scored against which truths, and the scoring itself, in several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from purnet.data.pairs import (
    UnreadableError,
    check_folder,
    files_by_stem,
    find_pairs,
    holds_layout,
    image_folder_beside,
    is_held_out,
    opened,
    read_map,
    read_truth,
    size_of,
)
from purnet.errors import EvaluationError, NotFiniteError
from purnet.evaluation.metrics import ImageScore, score_image, score_set
from purnet.evaluation.report import (
    LeftOut,
    ScoredImage,
    SetResult,
    canonical_name,
    published_scores,
)
from purnet.imaging import UInt8Array, as_displayed, resize_mask

_MAX_NAMED = 5
"""Files that an error message lists before it says how many more there are."""

_IMAGES_A_PROCESS = 100
"""Fewest images that a process is started for: starting one takes as long as scoring them."""

_WAITING_A_PROCESS = 4
"""Maps that wait for each process, so that none is idle and memory stays bounded."""


class Predicts(Protocol):
    """What is needed of a predictor; `purnet.Predictor` is one."""

    def predict(self, image: Image.Image, /) -> UInt8Array:
        """RGB image as displayed -> its mask, (H, W) uint8. Raises `NotFiniteError`."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """One image to score."""

    stem: str
    truth: Path
    photo: Path | None
    """A folder of masks may come without photos."""
    saved: Path | None = None
    """File of its map; None for one that is to be predicted from the photo."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """What of a data set can be scored, and what cannot."""

    name: str
    """The paper's name of the set where it has one, else its folder's."""
    folder: Path
    cases: list[Case]
    missing: list[str] = field(default_factory=list)
    """Stems that have a truth but no map."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """Files that cannot be used, and why."""


def dataset_to_predict(
    dataset: str, root: Path | None, *, held_out_percent: float | None = None
) -> ImageSet:
    """The images of a data set: a folder in a known layout, by its path or its name in `root`.

    With `held_out_percent`, those alone that a recipe of this setting does not train on. Raises
    `DatasetError` when there is none.
    """
    folder = Path(dataset) if root is None else root / dataset
    percent = 100.0 if held_out_percent is None else held_out_percent
    found = find_pairs(folder, keep=partial(is_held_out, percent=percent))
    cases = [Case(pair.stem, pair.mask, pair.image) for pair in found.pairs]
    return ImageSet(_name(folder), folder, cases, left_out=found.skipped)


def saved_maps(predictions: Path, truth: Path, *, resize: bool) -> ImageSet:
    """Saved maps paired by stem with the masks of `truth`, a folder of masks or a whole data set.

    Sizes are compared before anything is scored. Raises `DatasetError` for a folder that is not
    there or cannot be read, and `EvaluationError` when no map has a truth, or when sizes differ and
    `resize` is false.
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
        cases.append(Case(stem, masks[stem], photos.get(stem), maps[stem]))
    if not cases:
        unread = _listed([f"{path.name} {reason}" for path, reason in left_out if path.is_file()])
        why = f"No map in {predictions} has the name of a mask in {truth} and can be read"
        raise EvaluationError(f"{why}: {unread}." if unread else f"{why}.")
    if other_sizes and not resize:
        raise EvaluationError(f"Sizes differ (--resize fits the maps): {_listed(other_sizes)}.")
    missing = sorted(masks.keys() - maps.keys())
    return ImageSet(_name(truth), truth, cases, missing, left_out)


def score(
    images: ImageSet,
    predictor: Predicts | None,
    *,
    processes: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> SetResult:
    """Score a set, leaving out and naming what turns out to be broken.

    `predictor`, needed where maps are not saved, runs in this process, while at most `processes`
    others read files and compute scores; 0 is a thread of this one. Scores do not depend on their
    number. `progress` is called after every image. Raises `EvaluationError` when not one image
    could be scored.
    """
    scores: dict[str, ImageScore] = {}
    left_out = list(images.left_out)
    try:
        for case, outcome in _outcomes(images.cases, predictor, processes):
            if isinstance(outcome, ImageScore):
                scores[case.stem] = outcome
            else:
                left_out.append(outcome)
            progress()
    except BrokenProcessPool as error:
        raise EvaluationError(
            "A process that scores was ended from outside; if memory is short, take fewer: "
            "--processes 1"
        ) from error
    if not scores:
        reasons = _listed([reason for _, reason in left_out])
        raise EvaluationError(f"Nothing in {images.folder} could be scored: {reasons}")
    published_images, published = published_scores(images.name)
    return SetResult(
        name=images.name,
        folder=str(images.folder),
        images=len(scores),
        **score_set([*scores.values()])._asdict(),
        scored=[
            ScoredImage(stem=stem, mae=one.mae, weighted_f=one.weighted_f, s_measure=one.s_measure)
            for stem, one in scores.items()
        ],
        empty_truths=[stem for stem, one in scores.items() if one.empty_truth],
        missing=images.missing,
        left_out=[LeftOut(file=str(path), reason=reason) for path, reason in left_out],
        published_images=published_images,
        published=published,
    )


def map_of(case: Case, predictor: Predicts | None) -> UInt8Array:
    """A case's map (H, W) uint8, read or predicted. Raises `UnreadableError`."""
    if case.saved is not None:
        return read_map(case.saved)
    return _predicted(case, predictor)


def _predicted(case: Case, predictor: Predicts | None) -> UInt8Array:
    if case.photo is None or predictor is None:
        raise UnreadableError(case.truth, "has no photo to predict from")
    with opened(case.photo) as image:
        photo = as_displayed(image)
    try:
        return predictor.predict(photo)
    except NotFiniteError as error:
        raise UnreadableError(case.photo, f"has no map: {error}") from error


def resize_to(saliency: UInt8Array, truth: UInt8Array) -> UInt8Array:
    """A map (H, W) uint8 at the size of its truth."""
    if saliency.shape == truth.shape:
        return saliency
    height, width = truth.shape
    return resize_mask(saliency, (width, height))


Outcome = ImageScore | tuple[Path, str]
"""Scores of an image, or the file that cannot be used and why."""


def _outcomes(
    cases: list[Case], predictor: Predicts | None, processes: int
) -> Iterator[tuple[Case, Outcome]]:
    """Each case with its outcome, in order."""
    processes = min(processes, len(cases) // _IMAGES_A_PROCESS)
    waiting: deque[tuple[Case, Future[Outcome]]] = deque()
    with _pool(processes) as pool:
        for case in cases:
            waiting.append((case, _submit(pool, case, predictor)))
            if len(waiting) > _WAITING_A_PROCESS * max(processes, 1):
                first, future = waiting.popleft()
                yield first, future.result()
        for case, future in waiting:
            yield case, future.result()


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


def _submit(pool: Executor, case: Case, predictor: Predicts | None) -> Future[Outcome]:
    try:
        saliency = case.saved or _predicted(case, predictor)
        return pool.submit(_outcome, saliency, case.truth)
    except UnreadableError as error:
        unusable: Future[Outcome] = Future()
        unusable.set_result((error.path, error.reason))
        return unusable


def _outcome(saliency: UInt8Array | Path, truth: Path) -> Outcome:
    """Score one image, in the pool, which reads a map that is a file."""
    try:
        levels = read_truth(truth)
        saliency = read_map(saliency) if isinstance(saliency, Path) else saliency
        return score_image(resize_to(saliency, levels), levels)
    except UnreadableError as error:  # whose two arguments pickle would lose
        return error.path, error.reason


def _name(folder: Path) -> str:
    return canonical_name(folder.name) or folder.resolve().name


def _masks_and_photos(
    truth: Path, left_out: list[tuple[Path, str]]
) -> tuple[dict[str, Path], dict[str, Path]]:
    # A data set first: a picture beside its two folders does not make it a folder of masks.
    masks = {} if holds_layout(truth) else files_by_stem(truth, left_out)
    if masks:
        photos = image_folder_beside(truth)
        return masks, files_by_stem(photos, []) if photos else {}
    found = find_pairs(truth)
    left_out += found.skipped
    return (
        {pair.stem: pair.mask for pair in found.pairs},
        {pair.stem: pair.image for pair in found.pairs},
    )


def _listed(things: list[str]) -> str:
    more = len(things) - _MAX_NAMED
    return "; ".join(things[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
