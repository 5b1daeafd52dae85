"""`purnet train`: its options. Imports nothing heavy by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from purnet.cli.errors import reported_errors


def train(
    data: Annotated[
        Path,
        typer.Option(help="Folder the recipe's sources lie in.", exists=True, file_okay=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on in it.")],
    recipe: Annotated[str, typer.Option(help="lite0, paper, or a file.")] = "lite0",
    cache_dir: Annotated[
        Path, typer.Option(help="Where superpixels are kept; never below --data.")
    ] = Path(".cache/superpixels"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    stage: Annotated[
        int | None, typer.Option(min=1, help="Train this stage alone, from --init.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from, such as an earlier stage's.", exists=True),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            help="ImageNet weights of a backbone other than EfficientNet-Lite0.", exists=True
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=0, help="Processes that load samples beside the training one.")
    ] = 0,
    stop_after: Annotated[
        float | None, typer.Option(min=0, help="Stop cleanly after this many MINUTES.")
    ] = None,
) -> None:
    """Train PurNet by a recipe of stages; run the same command again to go on."""
    with reported_errors(extra="train"):
        from purnet.training.run import RunOptions, run

        run(
            RunOptions(
                recipe=recipe,
                data=data,
                out=out,
                cache_dir=cache_dir,
                device=device,
                stage=stage,
                init=init,
                backbone_weights=backbone_weights,
                processes=processes,
                stop_after_min=stop_after,
            )
        )
