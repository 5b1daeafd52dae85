"""The command `purnet`. Declaring it loads nothing heavy."""

from purnet_serve.cli.commands import app

__all__ = ["app"]
