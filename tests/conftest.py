"""What every test may use."""

from __future__ import annotations

import os
from typing import Protocol

import pytest

# Before torch is loaded, which reads them then: networks of tests are small, and threads that wait
# for each other take longer than one that computes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Require(Protocol):
    """See `require`."""

    def __call__(self, condition: object, reason: str) -> None: ...


@pytest.fixture(scope="session")
def require() -> Require:
    """`require(condition, reason)`: skip where this machine lacks something, fail where CI does.

    A machine of a contributor may lack Chromium or the data; the one that decides whether a change
    is good may not, or a test would go unrun without anybody knowing.
    """

    def check(condition: object, reason: str) -> None:
        if condition:
            return
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI must have it: {reason}")
        pytest.skip(reason)

    return check
