"""Commands that work on files: predict, train, evaluate, convert, export. Mounted by `service.cli`."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)
