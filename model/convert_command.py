"""`purnet convert`: any checkpoint in, one of ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.errors import ModelError


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
    half: Annotated[
        bool, typer.Option("--half", help="Store weights in 16 bits: half the size.")
    ] = False,
) -> None:
    """Convert a checkpoint to safetensors that say what they are: variant, input size, source."""
    console = Console(stderr=True)
    try:
        from model.checkpoint import convert as run  # imports torch

        info = run(source, target, half=half)
    except ModuleNotFoundError as error:
        console.print(f"{error}: pip install 'purnet-serve[torch]'", style="bold red")
        raise typer.Exit(2) from error
    except ModelError as error:
        console.print(str(error), markup=False, style="bold red", soft_wrap=True)
        raise typer.Exit(2) from error
    parts = "all three pyramids" if info.attention else "stage 1, without attentions"
    console.print(f"{target}: {info.variant}, {parts}", markup=False, soft_wrap=True)
