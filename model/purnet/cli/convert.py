"""`purnet convert`: any checkpoint in, one of ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from purnet.cli.errors import reported_errors


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="Released stage1.pth, stage2.pth or stage3.pth, a resume.pt, or one of ours.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    *,
    average_with: Annotated[
        list[Path] | None,
        typer.Option(
            "--average-with",
            metavar="FILE",
            help="Write the mean of IN's weights and this file's; may be given several times.",
        ),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store weights in 16 bits: half the size.")
    ] = False,
) -> None:
    """Convert a checkpoint to safetensors that say what they are: variant, input size, source."""
    console = Console(stderr=True)
    with reported_errors(extra="torch"):
        from purnet.network.checkpoint import convert as run  # imports torch

        info = run(source, target, half=half, average_with=average_with or ())
    parts = "all three pyramids" if info.attention else "stage 1, without attentions"
    console.print(f"{target}: {info.variant}, {parts}", markup=False, soft_wrap=True)
