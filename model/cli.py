"""Commands that work on files; `service.cli` mounts them beside its own."""

from __future__ import annotations

import typer

from model.convert_command import convert
from model.evaluation.command import evaluate
from model.export_command import export
from model.predict_command import predict
from model.training.command import train

app = typer.Typer(no_args_is_help=True)
app.command()(predict)
app.command()(train)
app.command()(evaluate)
app.command()(export)
app.command()(convert)
