"""What is written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(part)` and move its file to `path`: a kill at any moment leaves old or new.

    Follows links. Raises `OSError` for a path that is a device, a pipe or a folder.
    """
    path = Path(os.path.realpath(path))  # `Path.resolve` fails on a link to itself
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "it is there and is no file", str(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # what the umask allows; safetensors makes its files private
        write(part)
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
