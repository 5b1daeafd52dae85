"""Commands that work on files; `service.cli` mounts them beside its own."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)
