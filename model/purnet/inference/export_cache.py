"""Exports made on the way to serving a checkpoint, so that the next start finds them."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from purnet.inference.exported import FORMAT, is_export
from purnet.io import sha256_of


def cached_export(checkpoint: Path) -> Path:
    """The export of a checkpoint, made now if it is not there yet. Raises as `export` does.

    It lies in `$XDG_CACHE_HOME/purnet`, by default `~/.cache/purnet`, under the checkpoint's sha256
    and what else decides its content: the format, our version, OpenVINO's and torch's. Only making
    one loads torch.
    """
    made_by = "-".join([FORMAT, *map(version, ("purnet-serve", "openvino", "torch"))])
    folder = cache_folder() / f"{sha256_of(checkpoint)[:32]}-{made_by}"
    if not is_export(folder):
        from purnet.inference.openvino_export import export

        export(checkpoint, folder)
    return folder


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "purnet"
