"""Ray clusters of one node or several on this machine, on loopback, ended with the test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from fake_predictor import FACTORY
from prometheus_client import CollectorRegistry
from service_process import PYTHONPATH

from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.settings import Settings

OBJECT_STORE_BYTES = 100 << 20
PROCESSORS_OF_A_NODE = 2
"""That Ray counts with: replicas of a test take one each, whatever the machine has."""


@dataclass
class RayCluster:
    """A cluster. `address` is what `ray_address` takes."""

    address: str
    nodes: list[Any]
    """Of `ray.cluster_utils`; the first is the head."""
    _cluster: Any

    @property
    def dashboard_url(self) -> str:
        return f"http://{self.nodes[0].webui_url}"

    def backend(self, checkpoint: Path, **settings: Any) -> RayBackend:
        """A server's backend on this cluster; its replicas load the fake predictor."""
        from purnet_serve.inference.ray.cluster import RayTier

        chosen = Settings(
            backend="ray", ray_address=self.address, checkpoint=checkpoint, **settings
        )
        metrics = InferenceMetrics(CollectorRegistry())
        return RayBackend(chosen, metrics, RayTier(chosen, FACTORY))

    def kill_node(self, number: int) -> None:
        """End every process of a node at once, as a machine that loses its power."""
        self._cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def add_node(self) -> None:
        self.nodes.append(self._cluster.add_node(**_node_options()))

    def replicas(self, number: int | None = None) -> list[psutil.Process]:
        """The processes of the model replicas on a node, or on all."""
        nodes = self.nodes if number is None else [self.nodes[number]]
        raylets = [one.process.pid for node in nodes for one in node.all_processes["raylet"]]
        return [
            process
            for raylet in raylets
            for process in psutil.Process(raylet).children(recursive=True)
            if "ServeReplica" in _title(process) and ":Model" in _title(process)
        ]


async def held_by_replicas(app: str) -> int:
    """Images that have come to the replicas of an application and were not answered."""
    import ray
    from ray.util import list_named_actors

    names = [
        actor["name"]
        for actor in list_named_actors(all_namespaces=True)
        if actor["name"].startswith(f"SERVE_REPLICA::{app}#")
    ]
    replicas = [ray.get_actor(name, namespace="serve") for name in names]
    return sum([await one.get_num_ongoing_requests.remote() for one in replicas])


@contextmanager
def ray_cluster(nodes: int, *, dashboard: bool = False) -> Iterator[RayCluster]:
    """Start that many nodes, which find what this process imports.

    `serve deploy` talks to the dashboard.
    """
    import ray
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster
    from ray.serve.context import _set_global_client

    # `Cluster` writes its address there too, wherever its own folder is, and does not make it.
    Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
    # Sockets lie in it, and their paths may not be long.
    folder = tempfile.mkdtemp(prefix="ray")
    head: dict[str, Any] = {**_node_options(), "temp_dir": folder, "include_dashboard": dashboard}
    if dashboard:
        head["dashboard_port"] = 0
    # Replicas load the fake predictor by its name.
    with patch.dict(os.environ, {"PYTHONPATH": PYTHONPATH}):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            found = [cluster.head_node]
            found += [cluster.add_node(**_node_options()) for _ in range(nodes - 1)]
            yield RayCluster(cluster.address, found, cluster)
        finally:
            ray.shutdown()
            # Or Ray Serve would look for its controller in the next cluster.
            _set_global_client(None)
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _node_options() -> dict[str, Any]:
    return {"num_cpus": PROCESSORS_OF_A_NODE, "object_store_memory": OBJECT_STORE_BYTES}


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
