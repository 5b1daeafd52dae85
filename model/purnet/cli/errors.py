"""Errors of a command, as one sentence and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

UNUSABLE = 2
"""Exit status of a command that could not begin or go on; a bad command line's as well."""


@contextmanager
def reported_errors(*, extra: str) -> Iterator[None]:
    """Turn a `ModelError`, or a package that is not installed, into one sentence and `UNUSABLE`.

    `extra` names the extra of the package that installs what the command needs.
    """
    from rich.console import Console

    from purnet.errors import ModelError

    try:
        yield
    except ModelError as error:
        message = str(error)
        cause: Exception = error
    except ModuleNotFoundError as error:
        message = f"{error}: pip install 'purnet-serve[{extra}]'"
        cause = error
    else:
        return
    Console(stderr=True).print(message, markup=False, style="bold red", soft_wrap=True)
    raise typer.Exit(UNUSABLE) from cause
