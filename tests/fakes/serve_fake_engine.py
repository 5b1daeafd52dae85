"""`purnet serve` with everything real but the network; settings come from PURNET_*."""

from __future__ import annotations

import sys

from fake_predictor import FACTORY

from service.backends.local import LocalBackend
from service.errors import OperatorError
from service.logs import configure_logging
from service.metrics import Metrics
from service.server import run
from service.settings import Settings


def main() -> None:
    settings = Settings()
    configure_logging(settings)
    metrics = Metrics()
    backend = LocalBackend(settings, metrics.queue, factory=FACTORY)
    try:
        run(settings, backend, metrics, lambda url: print(url, flush=True))
    except OperatorError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
