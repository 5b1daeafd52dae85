"""Every Prometheus series, over its own registry. Label values are a closed set, created at 0.

`DoorMetrics` describes requests (door), `QueueMetrics` what happens behind it (queue, workers).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry


class DoorMetrics:
    """Requests as clients see them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry


class QueueMetrics:
    """Queue, batches and workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry


class Metrics:
    """All series of one service, over one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.door = DoorMetrics(self.registry)
        self.queue = QueueMetrics(self.registry)
