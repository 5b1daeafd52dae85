from __future__ import annotations

import os
from pathlib import Path

import pytest

from purnet.cpus import available_cpus

PLENTY = 64


@pytest.fixture(autouse=True)
def many_processors(monkeypatch):
    """Affinity to more processors than any quota here grants."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(PLENTY)))


def cgroups(root: Path, own: str, **files: str) -> tuple[Path, Path]:
    """(cgroup root, file that names our own): `files` maps paths, `__` for `/`, to contents."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "self").write_text(own)
    return root, root / "self"


def test_without_a_quota_the_affinity_counts(tmp_path):
    assert available_cpus(*cgroups(tmp_path, "0::/\n", cpu_max="max 100000\n")) == PLENTY


def test_a_quota_is_rounded_up(tmp_path):
    assert available_cpus(*cgroups(tmp_path, "0::/\n", cpu_max="150000 100000\n")) == 2


def test_less_than_one_processor_is_one(tmp_path):
    assert available_cpus(*cgroups(tmp_path, "0::/\n", cpu_max="10000 100000\n")) == 1


def test_the_tightest_of_the_enclosing_groups_binds(tmp_path):
    places = cgroups(
        tmp_path,
        "0::/pod/box\n",
        pod__cpu_max="300000 100000\n",
        pod__box__cpu_max="max 100000\n",
    )
    assert available_cpus(*places) == 3


def test_a_legacy_quota_counts_too(tmp_path):
    places = cgroups(
        tmp_path,
        "4:memory:/box\n3:cpu,cpuacct:/box\n",
        cpu__box__cpu_cfs_quota_us="200000\n",
        cpu__box__cpu_cfs_period_us="100000\n",
    )
    assert available_cpus(*places) == 2


def test_a_legacy_group_without_a_quota_binds_nothing(tmp_path):
    places = cgroups(
        tmp_path,
        "3:cpu:/\n",
        cpu__cpu_cfs_quota_us="-1\n",
        cpu__cpu_cfs_period_us="100000\n",
    )
    assert available_cpus(*places) == PLENTY


def test_no_cgroups_at_all(tmp_path):
    assert available_cpus(tmp_path / "none", tmp_path / "none") == PLENTY


def test_the_affinity_can_be_the_tighter_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available_cpus(*cgroups(tmp_path, "0::/\n", cpu_max="400000 100000\n")) == 1
