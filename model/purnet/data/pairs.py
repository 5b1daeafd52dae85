"""Folders of photos and masks: the layouts they are published in, and the paper's six by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from purnet.data.maps import UnreadableError, opened, read_truth
from purnet.errors import DatasetError
from purnet.imaging import IMAGE_SUFFIXES, as_displayed


class Layout(NamedTuple):
    """Names of the two folders of a data set, compared without regard to case."""

    image: str
    mask: str

    def __str__(self) -> str:
        return f"{self.image}/ + {self.mask}/"


_DUT_OMRON = (
    Layout("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    Layout("DUT-OMRON-image", "DUT-OMRON-gt-pixelwise.zip"),  # its archive ends in .zip.zip
)
_DUTS_TEST = Layout("DUTS-TE-Image", "DUTS-TE-Mask")
_ECSSD = Layout("images", "ground_truth_mask")
_PASCAL_S = Layout("datasets/imgs/pascal", "datasets/masks/pascal")

LAYOUTS = (
    Layout("image", "mask"),
    Layout("images", "masks"),
    Layout("image", "groundtruth"),
    Layout("imgs", "gt"),
    Layout("DUTS-TR-Image", "DUTS-TR-Mask"),
    _DUTS_TEST,
    _ECSSD,
    *_DUT_OMRON,
    _PASCAL_S,
)
"""Every layout `find_pairs` knows. The first one whose two folders exist is taken."""


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A data set of the paper, and how to recognise it on somebody's disk."""

    name: str
    images: int
    """Number of images as published; a copy that holds another number is worth a remark."""
    folders: tuple[str, ...]
    """Folder names it is unpacked into, as `_key` writes them."""
    own_layouts: tuple[Layout, ...] = ()
    """Layouts no other set uses, recognised whatever the folder around them is called."""


NAMED_SETS = {
    named.name: named
    for named in (
        NamedSet("ECSSD", 1000, ("ecssd",), (_ECSSD,)),
        NamedSet("DUT-OMRON", 5168, ("dutomron", "dutsomron", "omron"), _DUT_OMRON),
        NamedSet("PASCAL-S", 850, ("pascals", "salobj"), (_PASCAL_S,)),
        NamedSet("HKU-IS", 4447, ("hkuis",)),
        NamedSet("DUTS-TE", 5019, ("dutste", "dutstest"), (_DUTS_TEST,)),
        NamedSet("XPIE", 10000, ("xpie",)),
    )
}
"""The six data sets of the paper's table, in its order."""

_SEARCH_DEPTH = 4
"""Folders below the root that are looked into: ROOT/RGB-SOD/DUTS/DUTS-TE is three."""


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


def find_pairs(folder: Path) -> Pairs:
    """Pair the photos and masks of `folder`, which is in one of `LAYOUTS`.

    Every file is read once as a run will read it, in threads, so that none of hours meets a
    truncated file in its middle. A file that is broken, has no partner or another size than its
    partner is skipped and named. Raises `DatasetError` when nothing is left, saying which layouts
    are known, and for a folder of these that cannot be read.
    """
    check_folder(folder)
    found = next(_layouts_in(folder, LAYOUTS), None)
    if found is None:
        raise DatasetError(f"{folder} holds no data set. {_known_layouts()}")
    layout, image_folder, mask_folder = found
    skipped: list[tuple[Path, str]] = []
    images = files_by_stem(image_folder, skipped)
    masks = files_by_stem(mask_folder, skipped)
    skipped += [(images[stem], "has no mask") for stem in sorted(images.keys() - masks.keys())]
    skipped += [(masks[stem], "has no image") for stem in sorted(masks.keys() - images.keys())]
    pairs = [Pair(s, images[s], masks[s]) for s in sorted(images.keys() & masks.keys())]
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(_fault, pairs))
    skipped += [fault for fault in faults if fault is not None]
    whole = [pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]
    if not whole:
        what = (
            "; ".join(f"{path.name} {reason}" for path, reason in skipped[:3]) or "both are empty"
        )
        raise DatasetError(
            f"{folder} has the layout {layout} but no usable pair: {what}. {_known_layouts()}"
        )
    return Pairs(folder, layout, whole, skipped)


def find_named(name: str, root: Path) -> Path:
    """The folder, at most four levels below `root`, that holds the data set `name` of the paper.

    A folder called like the set (`HKU-IS`, `hku_is`, ...) in any known layout is preferred to one
    recognised by the set's own layout alone; of several, the one nearest to the root is taken.
    Folders that cannot be read are passed over. Raises `DatasetError` when there is none or the
    name is not one of `NAMED_SETS`.
    """
    named = NAMED_SETS.get(canonical_name(name) or "")
    if named is None:
        raise DatasetError(f"{name} is not one of the named data sets: {', '.join(NAMED_SETS)}.")
    check_folder(root)
    folders = list(_folders_below(root, _SEARCH_DEPTH))
    called = [folder for folder in folders if _key(folder.resolve().name) in named.folders]
    for place in called:
        for folder in _folders_below(place, 2):
            if holds_layout(folder):
                return folder
    for folder in folders:
        if any(_layouts_in(folder, named.own_layouts)):
            return folder
    seen = f"; {called[0]} is called like it but is in no known layout" if called else ""
    raise DatasetError(f"{named.name} was not found below {root}{seen}. {_known_layouts()}")


def holds_layout(folder: Path) -> bool:
    """Whether `folder` has the two subfolders of one of `LAYOUTS`."""
    return any(_layouts_in(folder, LAYOUTS))


def check_folder(folder: Path) -> None:
    """Raise `DatasetError` unless `folder` is a folder that can be read."""
    try:
        with os.scandir(folder):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"{folder} is not a folder.") from error
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}.") from error


def canonical_name(name: str) -> str | None:
    """`hku_is` -> `HKU-IS`: a set of the paper as the paper writes it, None for another name."""
    return next((known for known in NAMED_SETS if _key(known) == _key(name)), None)


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


def files_by_stem(folder: Path, skipped: list[tuple[Path, str]]) -> dict[str, Path]:
    """Image files directly in `folder` by stem; a second file of one stem goes to `skipped`.

    Raises `DatasetError` for a folder that cannot be read.
    """
    check_folder(folder)
    files: dict[str, Path] = {}
    for path in _image_files(folder):
        if path.stem in files:
            skipped.append((path, f"has the same stem as {files[path.stem].name}"))
        else:
            files[path.stem] = path
    return files


def _fault(pair: Pair) -> tuple[Path, str] | None:
    try:
        with opened(pair.image) as image:
            w, h = as_displayed(image).size
        mask_h, mask_w = read_truth(pair.mask).shape
    except UnreadableError as error:
        return error.path, error.reason
    if (w, h) != (mask_w, mask_h):
        return pair.mask, f"is {mask_w}x{mask_h}, its image is {w}x{h}"
    return None


def _layouts_in(folder: Path, layouts: Iterable[Layout]) -> Iterator[tuple[Layout, Path, Path]]:
    for layout in layouts:
        image, mask = (_descend(folder, part) for part in layout)
        if image is not None and mask is not None:
            yield layout, _unwrap(image), _unwrap(mask)


def _descend(folder: Path, path: str) -> Path | None:
    """`folder/path` as it is spelt on the disk, upper or lower case; None when it is not there."""
    here: Path | None = folder
    for part in path.split("/"):
        if here is None:
            return None
        here = next((sub for sub in _subfolders(here) if sub.name.lower() == part.lower()), None)
    return here


def _unwrap(folder: Path) -> Path:
    """The only subfolder when there is nothing else: archives often hold a folder of their name."""
    inner = _subfolders(folder)
    return inner[0] if len(inner) == 1 and not any(_image_files(folder)) else folder


def _folders_below(root: Path, depth: int) -> Iterator[Path]:
    """`root`, then the folders below it, level by level."""
    level = [root]
    for _ in range(depth + 1):
        yield from level
        level = [sub for folder in level for sub in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    return _entries(folder, os.DirEntry.is_dir)


def _image_files(folder: Path) -> list[Path]:
    files = _entries(folder, os.DirEntry.is_file)
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """What is wanted of `folder`, sorted; nothing of a folder that cannot be read."""

    def is_wanted(entry: os.DirEntry[str]) -> bool:
        try:
            return not entry.name.startswith(".") and wanted(entry)
        except OSError:  # a link to itself
            return False

    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_wanted(entry)]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _known_layouts() -> str:
    return "Known layouts: " + ", ".join(str(layout) for layout in LAYOUTS) + "."
