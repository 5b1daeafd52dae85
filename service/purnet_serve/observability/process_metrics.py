"""Metrics of the process itself: what it uses, and the memory it may use."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from purnet.cgroups import CGROUPS, OWN_CGROUP, enclosing


def watch_process(registry: CollectorRegistry) -> None:
    """Read processor time, memory and descriptors of this process at every scrape."""
    ProcessCollector(registry=registry)
    text = "Memory that this process and its children may use: the container's, or the machine's."
    limit = Gauge("purnet_memory_limit_bytes", text, registry=registry)
    limit.set_function(available_memory)


def available_memory(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Bytes: the machine's, or the smallest limit of an enclosing cgroup if that is less.

    A process and its children share what their cgroup allows; beyond it the kernel ends one.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [
        group.read("memory.max" if group.unified else "memory.limit_in_bytes").strip()
        for group in enclosing("memory", cgroups, own_cgroup)
    ]
    # Without a limit the file holds `max`, or a number that no machine has bytes for.
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])
