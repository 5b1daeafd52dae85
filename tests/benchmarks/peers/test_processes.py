"""A server's processes are found and ended, wherever they went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]

# A server that starts a process which leaves its session, is orphaned and ignores SIGTERM.
SERVER = """
(setsid sh -c 'trap "" TERM; echo ready; sleep 600; :' &)
exec sleep 600
"""

# In a process of its own, since it adopts orphans and ends every descendant it has.
DRIVER = """
import json, os, sys
from benchmarks.peers.processes import ProcessTree, adopt_orphans, spawn

adopt_orphans()
processors = {min(os.sched_getaffinity(0))}
reader, writer = os.pipe()
with os.fdopen(writer, "wb") as log:
    root = spawn(["sh", "-c", sys.argv[1]], processors, env=os.environ, cwd=".", log=log)
with os.fdopen(reader) as lines:
    lines.readline()
    tree = ProcessTree(root)
    before = tree.members()
    strays, rss_mib = tree.strays(processors), tree.rss_mib()
    tree.end()
told = {"ids": [process.pid for process in before], "strays": strays, "rss_mib": rss_mib}
print(json.dumps(told | {"left": len(tree.members())}))
"""


def test_all_of_a_server_is_ended():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "model")))}
    told = subprocess.run(
        [sys.executable, "-c", DRIVER, SERVER],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
        env=environment,
    )
    found = json.loads(told.stdout)
    assert len(found["ids"]) >= 2  # what was orphaned is found
    assert found["left"] == 0
    assert not any(psutil.pid_exists(pid) for pid in found["ids"])
    assert found["strays"] == 0
    assert found["rss_mib"] > 0
