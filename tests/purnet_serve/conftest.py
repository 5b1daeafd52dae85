from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from live_service import Live, MakeLive, live_services


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def make_live() -> AsyncIterator[MakeLive]:
    async with live_services() as make:
        yield make


@pytest.fixture
async def live(make_live: MakeLive) -> Live:
    return await make_live()
