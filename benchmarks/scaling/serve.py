"""A server over Ray before the sleeping engine; settings come from PURNET_*."""

from __future__ import annotations

import sys

from benchmarks.scaling.engine import FACTORY

from purnet_serve.errors import OperatorError
from purnet_serve.http.server import run
from purnet_serve.inference.ray.backend import RayBackend
from purnet_serve.inference.ray.cluster import RayTier
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.observability.logging import configure_logging
from purnet_serve.settings import Settings


def main() -> None:
    """Serve until SIGTERM."""
    settings, metrics = Settings(), Metrics()
    configure_logging(settings)
    backend = RayBackend(settings, metrics.inference, RayTier(settings, FACTORY))
    try:
        run(settings, backend, metrics, lambda url: print(f"ready at {url}", flush=True))
    except OperatorError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
