"""What a checkpoint's file is, by its content: told without torch."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import is_zipfile

from purnet.errors import CheckpointError
from purnet.io import is_file, is_folder

_HEAD_BYTES = 64
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # of the format


def is_safetensors(path: Path) -> bool:
    """Whether it is a safetensors file; any other is for torch to read.

    Raises `CheckpointError` for a file that cannot be read and for what people have in a
    checkpoint's place and can mend: a folder that is no export, an empty file, a web page, a Git
    LFS pointer, a file whose end is missing.
    """
    if is_file(path / "export.json"):
        raise CheckpointError(f"{path} is an export: name the checkpoint that it was made from")
    if is_folder(path):
        raise CheckpointError(
            f"{path} is a folder without export.json, so it is no export: name a checkpoint, or a "
            "folder that `purnet export` made"
        )
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")
    if (
        head.removeprefix(b"\xef\xbb\xbf")
        .lstrip()
        .lower()
        .startswith((b"<!doctype html", b"<html"))
    ):
        raise CheckpointError(f"{path} is an HTML page, not a checkpoint: download the file itself")
    if head.startswith(b"PK") and not is_zipfile(path):
        raise CheckpointError(f"{path} is cut short: download it again")
    if head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        return False
    if not _is_whole(path):
        raise CheckpointError(f"{path} is cut short or damaged: download it again")
    return True


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file ends where the last of its tensors does."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [of["data_offsets"][1] for name, of in header.items() if name != "__metadata__"]
            return bool(path.stat().st_size == _LENGTH_BYTES + length + max(ends, default=0))
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
