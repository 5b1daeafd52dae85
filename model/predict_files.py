"""Photos and folders of photos -> one folder of masks or cutouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from model.errors import ModelError
from model.imaging import IMAGE_SUFFIXES, cutout, open_image
from model.predictor import OutOfMemoryError, Predictor

Report = Callable[[Path, Exception | None], None]
"""Hears of every photo that is done, or failed with an error."""


def plan(inputs: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Photos and where their masks go: `OUT/<stem>.png`.

    Folders give the photos directly in them. Raises `ModelError`, before any work, for an input
    that does not exist, a folder without photos, and two photos of one stem.
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
        if targets[source].resolve() == source.resolve():
            raise ModelError(f"{source} would be overwritten by its own mask; choose another --out")
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
            (cutout(image, mask) if with_cutout else mask).save(target)
        # Pillow tells of a broken file by nearly any of these, depending on its format.
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as caught:
            error = caught
        except (FloatingPointError, OutOfMemoryError) as caught:
            error = caught
        if error is not None:
            failed.append(source)
        report(source, error)
    return failed


def _photos(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if path.is_dir():
            found = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
            )
            if not found:
                raise ModelError(f"there are no photos in the folder {path}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise ModelError(f"there is no file or folder {path}")
