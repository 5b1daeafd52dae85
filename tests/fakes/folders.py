"""Folders that this user may not read, for tests that run as root, who may read all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither list `folder` nor reach what is in it, until the test ends."""
    locked = folder.resolve()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def guarded(name: str, *, itself: bool) -> Any:
        original = getattr(os, name)

        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, int):
                # Not resolved: that would ask the very function that is guarded here.
                asked = Path(os.fsdecode(os.path.abspath(path)))  # noqa: PTH100
                if locked in asked.parents or (itself and asked == locked):
                    refuse(asked)
            return original(path, *arguments, **options)

        return call

    for name, itself in (("stat", False), ("lstat", False), ("scandir", True), ("listdir", True)):
        monkeypatch.setattr(os, name, guarded(name, itself=itself))
    open_file = Path.open

    def guarded_open(path: Path, *arguments: Any, **options: Any) -> Any:
        if locked in path.absolute().parents:
            refuse(path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", guarded_open)
