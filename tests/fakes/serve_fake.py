"""`purnet serve` before a fake backend, as a process: `python serve_fake.py` with PURNET_* set.

PURNET_FAKE_GATE=closed holds every prediction until the process is stopped.
"""

from __future__ import annotations

import os
import sys

from fake_backend import FakeBackend

from purnet_serve.errors import OperatorError
from purnet_serve.http.server import run
from purnet_serve.inference.backend import Pixels, Prediction
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.observability.logging import configure_logging
from purnet_serve.settings import Settings


class PrintingBackend(FakeBackend):
    """Prints a line for every prediction it is asked for."""

    async def predict(self, pixels: Pixels, *, deadline_s: float) -> Prediction:
        print("asked", flush=True)
        return await super().predict(pixels, deadline_s=deadline_s)


def main() -> None:
    settings = Settings()
    configure_logging(settings)
    backend = PrintingBackend()
    if os.environ.get("PURNET_FAKE_GATE") == "closed":
        backend.gate.clear()
    try:
        run(settings, backend, Metrics(), lambda url: print(url, flush=True))
    except OperatorError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
