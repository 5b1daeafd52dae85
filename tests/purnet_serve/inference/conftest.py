from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_predictor import Behaviour
from harness import BackendHarness


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Behaviour().save(tmp_path / "fake.json")


@pytest.fixture
def make_harness(checkpoint: Path) -> Iterator[Callable[..., BackendHarness]]:
    harnesses: list[BackendHarness] = []

    def make(**settings: object) -> BackendHarness:
        harness = BackendHarness(checkpoint, **settings)
        harnesses.append(harness)
        harness.start()
        return harness

    yield make
    for harness in harnesses:
        harness.close()


@pytest.fixture
def harness(make_harness) -> BackendHarness:
    """One worker, up and idle."""
    harness = make_harness()
    harness.bring_up()
    return harness
