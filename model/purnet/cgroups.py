"""What Linux's control groups allow this process: a container's limits are those of its group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


class Cgroup(NamedTuple):
    """One group of one controller."""

    folder: Path
    unified: bool
    """Whether it is of version 2, in which one tree holds all controllers."""

    def read(self, name: str) -> str:
        """The text of one of its files; empty where there is none."""
        try:
            return (self.folder / name).read_text()
        except OSError:
            return ""


def enclosing(
    controller: str, cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP
) -> Iterator[Cgroup]:
    """This process's group and those around it: the limits of each bind."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, unified = cgroups, True
        elif controller in controllers.split(","):
            root, unified = cgroups / controller, False
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            yield Cgroup(folder, unified)
