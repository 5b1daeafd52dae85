"""A process that holds a Ray cluster on this machine until its standard input is closed.

It has one node, or two: then model replicas find room on the second alone, so that what a server on
the first sends them crosses from node to node.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.scaling.processes import MODEL_NODE
from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster

PROCESSORS = 64
"""That the nodes say they have: how many replicas fit is up to the benchmark."""
OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    """Start the nodes, print the address of the head, wait."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.cluster")
    parser.add_argument("--nodes", type=int, choices=(1, 2), required=True)
    nodes = parser.parse_args().nodes
    node = {"num_cpus": PROCESSORS, "object_store_memory": OBJECT_STORE_BYTES}
    room = {"resources": {MODEL_NODE: PROCESSORS}}
    # `Cluster` writes its address there too, wherever its own folder is, and does not make it.
    Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
    # Files of other clusters on this machine lie in the usual folder. Names of sockets are in this
    # one, and may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        head = {**node, "include_dashboard": False, "temp_dir": folder}
        cluster = Cluster(
            initialize_head=True, head_node_args=head if nodes == 2 else {**head, **room}
        )
        try:
            if nodes == 2:
                cluster.add_node(**node, **room)
            print(cluster.address, flush=True)
            sys.stdin.read()
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
