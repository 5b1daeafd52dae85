"""`purnet predict`: photos and folders of photos -> one folder of masks or cutouts.

Imports nothing heavy by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Annotated

import typer

from purnet.cli.errors import reported_errors
from purnet.errors import ModelError

if TYPE_CHECKING:
    from purnet.inference.predictor import Predictor

Report = Callable[[Path, Exception | None], None]
"""Called for every photo that is done, or failed with an error."""


def predict(
    photos: Annotated[
        list[Path],
        typer.Argument(help="Photos, or folders of photos.", metavar="PHOTO|FOLDER..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder the masks are written into.")],
    *,
    with_cutout: Annotated[
        bool,
        typer.Option("--cutout", help="Write the object on transparent ground, not its mask."),
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to predict with. Default: those this package ships."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Find the salient object in photos: writes OUT/STEM.png for each, of the photo's own size.

    A mask is 8-bit grey, 255 where the object is. Masks already in OUT are overwritten; where OUT
    is a folder of the photos nothing is, and a file in the way is an error before any work. Exits
    1 when a photo could not be read; it is named and the rest is done.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with reported_errors(extra="torch"):
        from purnet.inference.factory import load

        targets = plan(photos, out)
        predictor = load(checkpoint, device=device)
    with Progress(console=console) as progress:
        task = progress.add_task("photos", total=len(targets))

        def report(source: Path, error: Exception | None) -> None:
            progress.advance(task)
            if error is not None:
                progress.console.print(f"{source}: {error}", markup=False, soft_wrap=True)

        failed = predict_all(predictor, targets, with_cutout=with_cutout, report=report)
    done = len(targets) - len(failed)
    console.print(f"{done} of {len(targets)} written to {out}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


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
    from PIL import Image

    from purnet.imaging import cutout, encode_png, open_image
    from purnet.io import write_atomically

    failed = []
    for source, target in targets.items():
        error: Exception | None = None
        try:
            image = open_image(source, keep_alpha=with_cutout)
            picture = Image.fromarray(predictor.predict(image))
            if with_cutout:
                picture = cutout(image, picture)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, partial(Path.write_bytes, data=encode_png(picture)))
        except (OSError, ValueError, Image.DecompressionBombError, ModelError) as caught:
            error = caught
            failed.append(source)
        report(source, error)
    return failed


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
        except OSError:  # reported with the photos that cannot be read
            is_folder = False
        if is_folder:
            yield from _photos_in(path)
        else:
            yield path


def _photos_in(folder: Path) -> list[Path]:
    from purnet.imaging import IMAGE_SUFFIXES

    try:
        photos = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES
            and not file.name.startswith(".")
            and _may_be_photo(file)
        )
    except OSError as error:
        raise ModelError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not photos:
        raise ModelError(f"there are no photos in the folder {folder}")
    return photos


def _may_be_photo(file: Path) -> bool:
    """False for folders and for pipes, which would be waited on."""
    try:
        return S_ISREG(file.stat().st_mode)
    except OSError:  # a broken link, say: reported with the photos that cannot be read
        return True
