"""Photos and folders of photos -> one folder of masks or cutouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from PIL import Image

from purnet.errors import ModelError, OutOfMemoryError
from purnet.imaging import IMAGE_SUFFIXES, cutout, open_image
from purnet.inference.predictor import Predictor
from purnet.io import write_atomically

Report = Callable[[Path, Exception | None], None]
"""Hears of every photo that is done, or failed with an error."""


def plan(inputs: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Photos and where their masks go: `OUT/<stem>.png`.

    Folders give the photos directly in them. What is there already is overwritten, as it is a mask
    of an earlier run; but in a folder of the photos it may be a photo. Raises `ModelError`, before
    any work, where a photo would be overwritten or anything in a folder of the photos, for an
    input that does not exist, a folder without photos, and two photos of one stem.
    """
    targets: dict[Path, Path] = {}
    taken: dict[str, Path] = {}
    for source in _photos(inputs):
        if source in targets:
            continue
        stem = source.stem
        if stem in taken:
            raise ModelError(f"{taken[stem]} and {source} would both be written to {stem}.png")
        taken[stem] = source
        targets[source] = out / f"{stem}.png"
    _check_overwrites(targets, out)
    return targets


def predict_all(
    predictor: Predictor, targets: dict[Path, Path], *, with_cutout: bool, report: Report
) -> list[Path]:
    """Write every mask, or every cutout; return the photos that failed.

    A photo that cannot be read, or whose mask cannot be computed, is reported and passed over.
    """
    failed = []
    for source, target in targets.items():
        error: Exception | None = None
        try:
            image = open_image(source)
            mask = predictor.mask(image)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(cutout(image, mask) if with_cutout else mask, target)
        except (OSError, ValueError, Image.DecompressionBombError) as caught:
            error = caught
        except (FloatingPointError, OutOfMemoryError) as caught:
            error = caught
        if error is not None:
            failed.append(source)
        report(source, error)
    return failed


def _write(picture: Image.Image, target: Path) -> None:
    write_atomically(target, lambda part: picture.save(part, format="PNG"))


def _check_overwrites(targets: dict[Path, Path], out: Path) -> None:
    # Not `Path.resolve`, which fails on a link to itself.
    photos = {os.path.realpath(source) for source in targets}
    beside = os.path.realpath(out) in {os.path.realpath(source.parent) for source in targets}
    for source, target in targets.items():
        if os.path.realpath(target) in photos:
            raise ModelError(
                f"{target} would be overwritten by the mask of {source}; choose another --out"
            )
        if beside and os.path.lexists(target):
            raise ModelError(
                f"{target} is there already, beside the photos, and would be overwritten by the "
                f"mask of {source}; choose another --out or move it"
            )


def _photos(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        try:
            is_folder = S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelError(f"there is no file or folder {path}") from error
        except OSError:  # told with the photos that cannot be read
            is_folder = False
        if is_folder:
            yield from _photos_in(path)
        else:
            yield path


def _photos_in(folder: Path) -> list[Path]:
    try:
        found = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES
            and not file.name.startswith(".")
            and _may_be_photo(file)
        )
    except OSError as error:
        raise ModelError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not found:
        raise ModelError(f"there are no photos in the folder {folder}")
    return found


def _may_be_photo(file: Path) -> bool:
    """False for folders and for pipes, which would be waited on."""
    try:
        return S_ISREG(file.stat().st_mode)
    except OSError:  # a broken link, say: told with the photos that cannot be read
        return True
