"""`purnet predict`: its options. Imports nothing heavy by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from purnet.cli.errors import reported_errors


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

    from purnet.cli.predict_files import plan, predict_all
    from purnet.inference.factory import load

    console = Console(stderr=True)
    with reported_errors(extra="torch"):
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
