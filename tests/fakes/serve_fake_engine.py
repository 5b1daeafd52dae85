"""`purnet serve` with everything real but the network; settings come from PURNET_*."""

from __future__ import annotations

import sys

from fake_predictor import FACTORY

from purnet_serve.errors import OperatorError
from purnet_serve.http.server import run
from purnet_serve.inference.backend import Backend
from purnet_serve.inference.local import LocalBackend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.logging import configure_logging
from purnet_serve.settings import Settings


def make_backend(settings: Settings, metrics: InferenceMetrics) -> Backend:
    if settings.backend == "local":
        return LocalBackend(settings, metrics, factory=FACTORY)
    from purnet_serve.inference.ray.backend import RayBackend
    from purnet_serve.inference.ray.cluster import RayTier

    return RayBackend(settings, metrics, RayTier(settings, FACTORY))


def main() -> None:
    settings = Settings()
    configure_logging(settings)
    metrics = Metrics()
    backend = make_backend(settings, metrics.inference)
    try:
        run(settings, backend, metrics, lambda url: print(url, flush=True))
    except OperatorError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
