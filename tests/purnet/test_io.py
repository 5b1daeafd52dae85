from __future__ import annotations

import os
from pathlib import Path

import pytest

from purnet.io import write_atomically


def test_a_file_is_replaced_and_no_part_stays(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    write_atomically(file, lambda part: part.write_text("new"))
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "x")
    write_atomically(tmp_path / "link", lambda part: part.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x").read_text() == "new"


def test_a_link_to_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write_atomically(tmp_path / "loop", lambda part: part.write_text("new"))
    assert (tmp_path / "loop").read_text() == "new"


def test_a_pipe_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no file"):
        write_atomically(tmp_path / "pipe", lambda part: part.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_whoever_the_umask_lets_read_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()

    def private(part: Path) -> None:
        part.unlink()
        part.touch(0o600)

    write_atomically(tmp_path / "x", private)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
