"""A client of each kind, called alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from both_clients import Call, Caller


@pytest.fixture(params=["threads", "asyncio"])
async def call(request: pytest.FixtureRequest) -> AsyncIterator[Call]:
    made: list[Caller] = []

    def make(url: str, **options: Any) -> Caller:
        made.append(Caller(request.param, url, **options))
        return made[-1]

    yield make
    for caller in made:
        await caller.close()
