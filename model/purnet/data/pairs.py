"""Pairs of photo and mask: the folders they are published in, and masks as grey levels."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from PIL import Image

from purnet.errors import DatasetError
from purnet.imaging import (
    IMAGE_SUFFIXES,
    ImageError,
    UInt8Array,
    apply_orientation,
    as_displayed,
    decoding,
    displayed_size,
    orientation,
    stored_samples,
)


class Layout(NamedTuple):
    """Names of the two folders of a data set, compared without regard to case."""

    image: str
    mask: str

    def __str__(self) -> str:
        return f"{self.image}/ + {self.mask}/"


LAYOUTS = (
    Layout("image", "mask"),
    Layout("images", "masks"),
    Layout("image", "groundtruth"),
    Layout("imgs", "gt"),
    Layout("DUTS-TR-Image", "DUTS-TR-Mask"),
    Layout("DUTS-TE-Image", "DUTS-TE-Mask"),
    Layout("images", "ground_truth_mask"),  # ECSSD
    Layout("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    Layout("DUT-OMRON-image", "DUT-OMRON-gt-pixelwise.zip"),  # its archive ends in .zip.zip
    Layout("datasets/imgs/pascal", "datasets/masks/pascal"),  # PASCAL-S
)
"""Every layout `find_pairs` knows. The first one whose two folders exist is taken."""


class UnreadableError(DatasetError):
    """One file of a set cannot be used. `reason` completes the sentence that `path` begins."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pair:
    """One photo and its mask, of one size. `stem` is the file name both share, less its suffix."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a data set folder holds."""

    folder: Path
    layout: Layout
    pairs: list[Pair]
    """Sorted by stem; every file decodes and every mask has its photo's size."""
    skipped: list[tuple[Path, str]]
    """Files left out, with the reason for a person to read."""
    empty: list[Path]
    """Masks of `pairs` in which nothing is salient: meant so, or exported wrongly."""


def find_pairs(folder: Path, *, keep: Callable[[str], bool] = lambda _stem: True) -> Pairs:
    """Pair the photos and masks of `folder`, which is in one of `LAYOUTS`.

    Files whose stem `keep` does not take are passed over without being read. Every other one is
    decoded once, in threads, so that a run of hours does not stop at a broken one. A file that is
    broken, has no partner or another size than its partner is skipped and named. Raises
    `DatasetError` when nothing is left, and for a folder that has no known layout or cannot be
    read.
    """
    check_folder(folder)
    found = next(_layouts_in(folder), None)
    if found is None:
        raise DatasetError(f"{folder} holds no data set. {_known_layouts()}")
    layout, image_folder, mask_folder = found
    skipped: list[tuple[Path, str]] = []
    images = files_by_stem(image_folder, skipped, keep=keep)
    masks = files_by_stem(mask_folder, skipped, keep=keep)
    skipped += [(images[stem], "has no mask") for stem in sorted(images.keys() - masks.keys())]
    skipped += [(masks[stem], "has no image") for stem in sorted(masks.keys() - images.keys())]
    stems = sorted(images.keys() & masks.keys())
    pairs = [Pair(stem, images[stem], masks[stem]) for stem in stems]
    with ThreadPoolExecutor() as pool:
        found_in = list(pool.map(_inspect, pairs))
    skipped += [fault for fault, _ in found_in if fault is not None]
    whole = [pair for pair, (fault, _) in zip(pairs, found_in, strict=True) if fault is None]
    empty = [pair.mask for pair, (_, is_empty) in zip(pairs, found_in, strict=True) if is_empty]
    if not whole:
        what = "; ".join(f"{path.name} {reason}" for path, reason in skipped[:3])
        what = what or "its folders are empty, or hold no file that is asked for"
        raise DatasetError(f"{folder} has the layout {layout} but no usable pair: {what}.")
    return Pairs(folder, layout, whole, skipped, empty)


def is_held_out(stem: str, *, percent: float) -> bool:
    """Whether a pair belongs to the validation split: decided by its name, so always the same."""
    return zlib.crc32(stem.encode()) % 10_000 < percent * 100


def holds_layout(folder: Path) -> bool:
    """Whether `folder` has the two subfolders of one of `LAYOUTS`."""
    return any(_layouts_in(folder))


def check_folder(folder: Path) -> None:
    """Raise `DatasetError` unless `folder` is a folder that can be read."""
    try:
        with os.scandir(folder):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"{folder} is not a folder.") from error
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}.") from error


def image_folder_beside(mask_folder: Path) -> Path | None:
    """The photos that belong to a folder of masks: `SET/image` for `SET/mask`, or None."""
    folder = mask_folder.resolve()
    for layout in LAYOUTS:
        depth = layout.mask.count("/") + 1
        if "/".join(folder.parts[-depth:]).lower() == layout.mask.lower():
            images = _descend(folder.parents[depth - 1], layout.image)
            if images is not None:
                return _unwrap(images)
    return None


def files_by_stem(
    folder: Path,
    skipped: list[tuple[Path, str]],
    *,
    keep: Callable[[str], bool] = lambda _stem: True,
) -> dict[str, Path]:
    """Image files directly in `folder` by stem; a second file of one stem goes to `skipped`.

    So does a file whose name is not UTF-8, as old archives leave them: it could not be printed.
    Files whose stem `keep` does not take are passed over. Stems are in Unicode's form C: some
    systems store an accent as a letter of its own. Raises `DatasetError` for a folder that cannot
    be read.
    """
    check_folder(folder)
    files: dict[str, Path] = {}
    for path in _image_files(folder):
        stem = normalize("NFC", path.stem)
        try:
            stem.encode()
        except UnicodeEncodeError:
            printable = os.fsencode(path.name).decode(errors="backslashreplace")
            skipped.append((folder / printable, "has a name that is not UTF-8"))
            continue
        if not keep(stem):
            continue
        first = files.setdefault(stem, path)
        if first is not path:
            skipped.append((path, f"has the same stem as {first.name}"))
    return files


def read_map(path: Path) -> UInt8Array:
    """A saliency map or mask as (H, W) uint8, 255 = salient.

    Takes 1-bit, grey, palette and colour files (their luminance) and 16-bit grey. Raises
    `UnreadableError` for a file that does not decode and for one with transparency, since that is a
    cutout whose colours say nothing about saliency.
    """
    with opened(path) as image:
        return grey_levels(image)


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as displayed, in pixels, from the header. Raises `UnreadableError`."""
    with opened(path) as image:
        return displayed_size(image)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's image of a file; whatever Pillow finds wrong with it becomes `UnreadableError`."""
    try:
        with decoding(path) as image:
            yield image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(path, f"cannot be read: {error}") from error


TRUTH_ABOVE = 128
"""A pixel of a truth is salient above this grey level, as in PySODMetrics; so for every metric."""


def read_truth(path: Path) -> UInt8Array:
    """`read_map` for ground truth, whose objects may be marked by other levels than white.

    A mask that holds only 0 and 1, at any depth, is stretched to 0 and 255: a grey one, or a PNG of
    16-bit colours. A palette mask that holds black and one other colour, or black and any colour
    but greys, holds labels, as VOC and labelme write them: what is not black is 255. Any other
    palette is read by its luminance, as a grey mask.
    """
    with opened(path) as image:
        truth = grey_levels(image)
        if image.mode in ("P", "PA"):
            colours = np.asarray(as_displayed(image))
            if _are_labels(colours):
                return np.where(colours.any(axis=2), np.uint8(255), np.uint8(0))
        samples = stored_samples(image)
        if samples is None and image.format == "PNG" and not np.asarray(image.convert("RGB")).any():
            samples = _low_bytes(path)
        if samples is not None and samples.max() == 1 and np.isin(samples, (0, 1)).all():
            marks = Image.fromarray(np.where(samples == 1, np.uint8(255), np.uint8(0)))
            return np.asarray(apply_orientation(marks, orientation(image)))
    return truth * np.uint8(255) if truth.max() == 1 else truth


def grey_levels(image: Image.Image) -> UInt8Array:
    """(H, W) uint8 of an opened image; see `read_map`."""
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ImageError("it has transparency, so it is a cutout and not a mask")
    return np.asarray(as_displayed(image).convert("L"))


def _low_bytes(path: Path) -> UInt8Array | None:
    """(H, W) uint8: the largest low byte of each pixel of a PNG of 16-bit colours; None of another.

    Of such colours Pillow keeps the high bytes. Read in the other order, it keeps the low ones.
    """
    with Image.open(path) as image:
        tile = image.tile[0]
        if tile.args not in ("RGB;16B", "RGBA;16B"):
            return None
        image.tile = [tile._replace(args=str(tile.args).replace("16B", "16L"))]
        low: UInt8Array = np.asarray(image)[..., :3].max(axis=2)
        return low


def _inspect(pair: Pair) -> tuple[tuple[Path, str] | None, bool]:
    """What is wrong with a pair, if anything is, and whether nothing is salient in its mask."""
    try:
        with opened(pair.image) as image:
            w, h = as_displayed(image).size
        truth = read_truth(pair.mask)
    except UnreadableError as error:
        return (error.path, error.reason), False
    mask_h, mask_w = truth.shape
    if (w, h) != (mask_w, mask_h):
        return (pair.mask, f"is {mask_w}x{mask_h}, its image is {w}x{h}"), False
    return None, not truth.any()


def _layouts_in(folder: Path) -> Iterator[tuple[Layout, Path, Path]]:
    for layout in LAYOUTS:
        image, mask = (_descend(folder, part) for part in layout)
        if image is not None and mask is not None:
            yield layout, _unwrap(image), _unwrap(mask)


def _descend(folder: Path, path: str) -> Path | None:
    """`folder/path` in upper or lower case, as it is on the disk; None when it is not there."""
    here: Path | None = folder
    for part in path.split("/"):
        if here is None:
            return None
        here = next((sub for sub in _subfolders(here) if sub.name.lower() == part.lower()), None)
    return here


def _unwrap(folder: Path) -> Path:
    """The only subfolder where nothing is beside it: archives often hold a folder of their name."""
    inner = _subfolders(folder)
    return inner[0] if len(inner) == 1 and not any(_image_files(folder)) else folder


def _subfolders(folder: Path) -> list[Path]:
    return _entries(folder, os.DirEntry.is_dir)


def _image_files(folder: Path) -> list[Path]:
    files = _entries(folder, os.DirEntry.is_file)
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def _entries(folder: Path, kind: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """The entries of `folder` that `kind` takes, sorted; none of a folder that cannot be read."""

    def is_taken(entry: os.DirEntry[str]) -> bool:
        try:
            return not entry.name.startswith(".") and kind(entry)
        except OSError:  # a link to itself
            return False

    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_taken(entry)]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _known_layouts() -> str:
    return "Known layouts: " + ", ".join(str(layout) for layout in LAYOUTS) + "."


def _are_labels(colours: UInt8Array) -> bool:
    """Whether (H, W, 3) uint8 RGB has black and one other colour, or black and a colour no grey."""
    marked = colours[colours.any(axis=2)]
    if not 0 < len(marked) < colours.shape[0] * colours.shape[1]:
        return False
    return bool((marked == marked[0]).all() or (marked != marked[:, :1]).any())
