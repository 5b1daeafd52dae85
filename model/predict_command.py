"""`purnet predict`: photos and folders in, masks into one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from model.errors import ModelError
from model.imaging import cutout, open_image
from model.predictor import Predictor

IMAGE_SUFFIXES = frozenset(Image.registered_extensions())
"""Files of a folder that are taken for photos; a file named by itself is always tried."""


Report = Callable[[Path, Exception | None], None]
"""Hears of every photo that is done, or failed with an error."""


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

    A mask is 8-bit grey, 255 where the object is. Exits 1 when a photo could not be read; it is
    named and the rest is done.
    """
    console = Console(stderr=True)
    try:
        targets = plan(photos, out)
        predictor = Predictor.load(checkpoint, device=device)
    except ModelError as error:
        console.print(str(error), markup=False, style="bold red", soft_wrap=True)
        raise typer.Exit(2) from error
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

    A photo that cannot be read is reported and passed over.
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
            failed.append(source)
        report(source, error)
    return failed


def _photos(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise ModelError(f"there are no photos in the folder {path}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise ModelError(f"there is no file or folder {path}")
