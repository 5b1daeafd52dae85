"""`purnet export`: a checkpoint in, a folder out that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.errors import ModelError


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of any kind PurNet reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.", metavar="DIR")],
) -> None:
    """Convert a checkpoint for serving on CPUs without torch: `purnet serve --checkpoint DIR`."""
    console = Console(stderr=True)
    try:
        # A module of its own: it imports torch.
        from model.engines.export import export as run

        with console.status(f"converting {checkpoint} ..."):
            found = run(checkpoint, out)
    except ModuleNotFoundError as error:
        console.print(f"{error}: pip install 'purnet-serve[torch,openvino]'", style="bold red")
        raise typer.Exit(2) from error
    except ModelError as error:
        console.print(str(error), markup=False, style="bold red", soft_wrap=True)
        raise typer.Exit(2) from error
    console.print(f"{out}: {found} from eager float32", markup=False, soft_wrap=True)
