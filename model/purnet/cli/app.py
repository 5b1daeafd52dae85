"""Commands that work on files; `purnet_serve.cli` adds them to its own."""

from __future__ import annotations

import typer

from purnet.cli.convert import convert
from purnet.cli.evaluate import evaluate
from purnet.cli.export import export
from purnet.cli.predict import predict
from purnet.cli.train import train

app = typer.Typer(no_args_is_help=True)
app.command()(predict)
app.command()(train)
app.command()(evaluate)
app.command()(export)
app.command()(convert)
