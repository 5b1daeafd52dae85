"""Files and folders of a run that cannot be written, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from purnet.errors import TrainingError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` meanwhile into a `TrainingError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error


def make_folder(folder: Path) -> None:
    """Make a folder where there is none. Raises `TrainingError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be made a folder: {error.strerror}") from error
