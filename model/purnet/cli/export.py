"""`purnet export`: a checkpoint in, a folder out that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from purnet.cli.errors import reported_errors


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of any kind PurNet reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.", metavar="DIR")],
) -> None:
    """Convert a checkpoint for serving on CPUs without torch: `purnet serve --checkpoint DIR`."""
    console = Console(stderr=True)
    with reported_errors(extra="torch,openvino"):
        # A module of its own: it imports torch.
        from purnet.inference.openvino_export import export as run

        with console.status(f"converting {checkpoint} ..."):
            found = run(checkpoint, out)
    console.print(f"{out}: {found} from eager float32", markup=False, soft_wrap=True)
