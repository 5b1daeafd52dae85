"""Files: written whole or not at all, and named by their content."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from purnet.errors import WriteError


def is_file(path: Path) -> bool:
    """Whether there is a file. `Path.is_file` raises where a path cannot be looked at."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder. `Path.is_dir` raises where a path cannot be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(part)` and move its file to `path`: a kill at any moment leaves old or new.

    Follows links. Raises `OSError` for a path that is a device, a pipe or a folder.
    """
    path = Path(os.path.realpath(path))  # `Path.resolve` fails on a link to itself
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "it is there and is no file", str(path))
    # A name of its own: the file's may be as long as the file system allows.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text by `write_atomically`. Raises `WriteError`."""
    with writing(path):
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `WriteError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where there is none. Raises `WriteError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder} cannot be made a folder: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
