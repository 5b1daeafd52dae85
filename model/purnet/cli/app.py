"""Commands that work on files; `purnet_serve.cli` adds them to its own.

`predict`, `train` and `evaluate` have files of their own. Nothing heavy is imported before it is
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from purnet.cli.errors import reported_errors
from purnet.cli.evaluate import evaluate
from purnet.cli.predict import predict
from purnet.cli.train import train

if TYPE_CHECKING:
    from purnet.inference.parity import MaskDifference

app = typer.Typer(no_args_is_help=True)
app.command()(predict)
app.command()(train)
app.command()(evaluate)


class ExportFormat(StrEnum):
    """What a checkpoint is exported for."""

    OPENVINO = "openvino"
    ONNX = "onnx"


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of any kind PurNet reads.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder to make; with ONNX, the .onnx file to write."),
    ],
    target: Annotated[
        ExportFormat,
        typer.Option("--format", help="openvino, for `purnet serve`; onnx, for ONNX Runtime."),
    ] = ExportFormat.OPENVINO,
) -> None:
    """Convert a checkpoint to run without torch: `purnet serve --checkpoint DIR`, or ONNX Runtime.

    The export is tried on a photo, and refused if its mask is not that of the checkpoint.
    """
    console = Console(stderr=True)
    with reported_errors(extra=f"torch,{target}"):
        run = _exporter(target)
        with console.status(f"converting {checkpoint} ..."):
            difference = run(checkpoint, out)
    console.print(f"{out}: {difference} from eager float32", markup=False, soft_wrap=True)


def _exporter(target: ExportFormat) -> Callable[[Path, Path], MaskDifference]:
    if target is ExportFormat.ONNX:
        from purnet.inference import onnx_export

        return onnx_export.export
    from purnet.inference import openvino_export

    return openvino_export.export


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
    scale_logits: Annotated[
        float,
        typer.Option(
            min=0.1, max=10, help="Multiply the map's logits; above 1 makes maps crisper."
        ),
    ] = 1.0,
    half: Annotated[
        bool, typer.Option("--half", help="Store weights in 16 bits: half the size.")
    ] = False,
) -> None:
    """Convert a checkpoint to safetensors that say what they are: variant, input size, source."""
    console = Console(stderr=True)
    with reported_errors(extra="torch"):
        from purnet.network.checkpoint import convert as run

        info = run(
            source,
            target,
            half=half,
            average_with=average_with or (),
            scale_logits=scale_logits,
        )
    parts = "all three pyramids" if info.attention else "stage 1, without attentions"
    console.print(f"{target}: {info.variant}, {parts}", markup=False, soft_wrap=True)
