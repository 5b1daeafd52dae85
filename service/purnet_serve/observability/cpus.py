"""How many processors this process may really use: thread counts derive from it, nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_cpus(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Smaller of the CPU affinity and the cgroup quota (rounded up), at least 1.

    `os.cpu_count()` counts the host's processors: a container limited to two on a host of
    sixty-four would start sixty-four threads and be throttled for most of every period.
    """
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    return max(1, min([affinity, *_quotas(cgroups, own_cgroup)]))


def engine_threads(workers: int, cpus: int) -> int:
    """Threads for the engine of each of `workers` workers that share `cpus` processors."""
    return max(1, cpus // workers)


def _quotas(cgroups: Path, own_cgroup: Path) -> Iterator[int]:
    """Whole processors each enclosing cgroup grants; a parent's quota binds its children too."""
    for line in _read(own_cgroup).splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers == "":
            root, unified = cgroups, True
        elif "cpu" in names:
            root, unified = cgroups / "cpu", False
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            quota = _unified_quota(folder) if unified else _legacy_quota(folder)
            if quota is not None:
                yield max(1, math.ceil(quota))


def _unified_quota(folder: Path) -> float | None:
    fields = _read(folder / "cpu.max").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _legacy_quota(folder: Path) -> float | None:
    quota = _read(folder / "cpu.cfs_quota_us").strip()
    period = _read(folder / "cpu.cfs_period_us").strip()
    if not quota or not period or int(quota) < 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
