from __future__ import annotations

import os
from pathlib import Path

import pytest

from purnet_serve.observability.process_metrics import available_memory

MACHINE = 64 << 30


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with more memory than any limit here."""
    sizes = {"SC_PHYS_PAGES": MACHINE >> 12, "SC_PAGE_SIZE": 1 << 12}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


def limited(root: Path, own: str, **limits: str) -> int:
    """What a process of this cgroup may use; `limits` maps files, `__` for `/`, to their text."""
    for name, text in limits.items():
        path = root / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "self").write_text(own)
    return available_memory(root, root / "self")


def test_the_tightest_of_the_enclosing_groups_binds(tmp_path: Path) -> None:
    limits = {"pod__memory_max": f"{4 << 30}\n", "pod__box__memory_max": f"{6 << 30}\n"}
    assert limited(tmp_path, "0::/pod/box\n", **limits) == 4 << 30


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    assert limited(tmp_path, "0::/\n", memory_max="max\n") == MACHINE
    assert available_memory(tmp_path / "none", tmp_path / "none") == MACHINE


def test_a_legacy_limit_counts_and_its_huge_number_for_none_does_not(tmp_path: Path) -> None:
    own = "4:memory:/box\n3:cpu,cpuacct:/box\n"
    unlimited = {"memory__memory_limit_in_bytes": "9223372036854771712\n"}
    assert limited(tmp_path, own, **unlimited) == MACHINE
    assert limited(tmp_path, own, memory__box__memory_limit_in_bytes=f"{1 << 30}\n") == 1 << 30
