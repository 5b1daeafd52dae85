"""A whole service on a real socket, in the test's own event loop, before a fake backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import httpx
from fake_backend import WAIT_S, FakeBackend

from purnet_serve.http.app import create_app
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.server import Server, listen
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings


@dataclass
class Live:
    """The parts a test looks at or moves."""

    url: str
    port: int
    service: ServiceContext
    backend: FakeBackend
    metrics: Metrics
    server: Server
    running: asyncio.Task[None]
    client: httpx.AsyncClient

    def sample(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"no series {name} {labels}"
        return value

    async def idle(self) -> None:
        """Return when nothing is in flight any more."""
        async with asyncio.timeout(WAIT_S):
            await self.service.admission.idle.wait()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


MakeLive = Callable[..., Awaitable[Live]]


@asynccontextmanager
async def live_services() -> AsyncIterator[MakeLive]:
    """Gives `await make(backend=None, **settings)`; every service ends with the context."""
    async with AsyncExitStack() as stack:

        async def make(backend: FakeBackend | None = None, **values: object) -> Live:
            backend = backend or FakeBackend()
            settings = Settings(**{"port": 0, "drain_s": 0.2, **values})  # type: ignore[arg-type]
            metrics = Metrics()
            app = create_app(settings, backend, metrics)
            sock = stack.enter_context(closing(listen(settings)))
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            server = Server(app, sock, metrics.inference, ready.set_result)
            running = asyncio.create_task(server.run())
            stack.push_async_callback(_stop, server, running)
            port = sock.getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            if backend.became_ready.is_set():
                async with asyncio.timeout(WAIT_S):
                    assert await ready == url
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False)
            )
            return Live(url, port, app.state.service, backend, metrics, server, running, client)

        yield make


async def _stop(server: Server, running: asyncio.Task[None]) -> None:
    if running.done():  # the test has seen how
        return
    server.stop()
    async with asyncio.timeout(WAIT_S):
        await running
