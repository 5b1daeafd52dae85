"""Commands that work on files; `purnet_serve.cli` adds them to its own.

`predict`, `train` and `evaluate` have files of their own. Nothing heavy is imported before it is
needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from purnet.cli.errors import reported_errors
from purnet.cli.evaluate import evaluate
from purnet.cli.predict import predict
from purnet.cli.train import train

app = typer.Typer(no_args_is_help=True)
app.command()(predict)
app.command()(train)
app.command()(evaluate)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of any kind PurNet reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.", metavar="DIR")],
) -> None:
    """Convert a checkpoint for serving on CPUs without torch: `purnet serve --checkpoint DIR`."""
    console = Console(stderr=True)
    with reported_errors(extra="torch,openvino"):
        from purnet.inference.openvino_export import export as run

        with console.status(f"converting {checkpoint} ..."):
            difference = run(checkpoint, out)
    console.print(f"{out}: {difference} from eager float32", markup=False, soft_wrap=True)


@app.command()
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
        from purnet.network.checkpoint import convert as run

        info = run(source, target, half=half, average_with=average_with or ())
    parts = "all three pyramids" if info.attention else "stage 1, without attentions"
    console.print(f"{target}: {info.variant}, {parts}", markup=False, soft_wrap=True)
