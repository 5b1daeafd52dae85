"""How many processors this process may use; every number of threads derives from it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from purnet.cgroups import CGROUPS, OWN_CGROUP, Cgroup, enclosing


def available_cpus(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Smaller of the CPU affinity and the cgroup quota (rounded up), at least 1.

    `os.cpu_count()` counts the host's processors: a container limited to two on a host of
    sixty-four would start sixty-four threads and be throttled for most of every period.
    """
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    return max(1, min([affinity, *_quotas(cgroups, own_cgroup)]))


def _quotas(cgroups: Path, own_cgroup: Path) -> Iterator[int]:
    """Whole processors each enclosing cgroup grants."""
    for group in enclosing("cpu", cgroups, own_cgroup):
        quota = _quota(group)
        if quota is not None:
            yield max(1, math.ceil(quota))


def _quota(group: Cgroup) -> float | None:
    """Processors one cgroup grants; None where it sets no limit."""
    if group.unified:
        fields = group.read("cpu.max").split()
    else:
        fields = [group.read(f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    # Without a limit the first field is `max`, or -1.
    if len(fields) != 2 or not all(field.isdecimal() for field in fields):
        return None
    return int(fields[0]) / int(fields[1])
