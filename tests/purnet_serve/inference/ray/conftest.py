from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_backend import Harness


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.close()


@pytest.fixture
def ready(harness: Harness) -> Harness:
    assert harness.start().done()
    return harness
