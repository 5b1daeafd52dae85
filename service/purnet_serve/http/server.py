"""Run the service: one process that listens, announces itself, and stops on a signal.

uvicorn speaks HTTP. Starting and stopping are done here, because uvicorn itself raises a caught
SIGTERM again at its end, so that a clean end would look like a kill.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server

from purnet_serve.errors import DrainingError, OperatorError, StartupError
from purnet_serve.http.app import create_app
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.event_loop import http_protocol, new_event_loop
from purnet_serve.inference.backend import Backend
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.settings import Settings
from purnet_serve.urls import local_url

BACKLOG = 2048
KEEP_ALIVE_S = 65
"""Seconds an idle connection stays open: longer than clients and proxies keep theirs (httpx 5,
nginx 60), so that they close it. When the server does, a request may be on its way already.
"""
GRACE_S = 5
"""Seconds uvicorn waits for connections beyond those that accepted requests have to finish."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MALLOC_THRESHOLDS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}
"""Bytes: the most that glibc chooses for both by itself, after a block of 32 MiB was freed."""

log = logging.getLogger("purnet_serve.http.server")


def run(
    settings: Settings, backend: Backend, metrics: Metrics, announce: Callable[[str], None]
) -> None:
    """Serve until SIGTERM, SIGINT or the end of the terminal, then drain and return.

    Any other SIGHUP reloads checkpoint and keys. `announce` is called once, when images are
    taken. Raises `OperatorError` when the service cannot start.
    """
    keep_freed_memory()
    app = create_app(settings, backend, metrics)
    with (
        closing(listen(settings)) as sock,
        metrics_server(settings, metrics.registry),
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        runner.run(Server(app, sock, metrics.inference, announce).run())


def keep_freed_memory() -> None:
    """Let glibc use freed memory again from the first photo on, not from the first large one.

    Until it has freed a large block it returns what the buffers of a small photo took to the
    kernel, and the next photo gets it back page by page: 500 page faults, 2 ms. Does nothing with
    another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, most_bytes in _MALLOC_THRESHOLDS.items():
            mallopt(parameter, most_bytes)


def listen(settings: Settings) -> socket.socket:
    """Bind the port. Raises `StartupError` when it is taken or not ours to take."""
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StartupError(f"cannot listen on {host} port {port}: {_reason(error)}") from error
    # Accepted sockets inherit both options. asyncio sets the first only on sockets that were made
    # with an explicit protocol; without it each answer's body waits for the peer's delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The kernel too cuts off a peer that takes nothing, whatever is still in its buffers.
        timeout_ms = int(settings.send_timeout_s * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    return sock


def _reason(error: OSError) -> str:
    """Why a port could not be bound; the text of asyncio's own has the address once more."""
    return os.strerror(error.errno) if error.errno else str(error)


@contextmanager
def metrics_server(settings: Settings, registry: CollectorRegistry) -> Iterator[int | None]:
    """`/metrics` in a thread of its own while the context lasts, if a port is set for it.

    Gives the port. Raises `StartupError` when it is taken.
    """
    if (port := settings.metrics_port) is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, settings.host, registry)
    except OSError as error:
        raise StartupError(f"cannot listen on metrics port {port}: {_reason(error)}") from error
    try:
        log.info("metrics", extra={"port": server.server_port})
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def foreground_group() -> int | None:
    """The process group in the foreground of this process's terminal.

    None without a terminal, also after it was closed; 0 when it cannot be found out.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        return None if error.errno in (errno.ENXIO, errno.EIO, errno.ENOENT) else 0
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return 0
    finally:
        os.close(terminal)


class _UvicornServer(uvicorn.Server):
    """uvicorn without its handling of signals, which `Server` does."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()


class Server:
    """A running service: handles signals, serves requests, ends everything in order."""

    def __init__(
        self,
        app: FastAPI,
        sock: socket.socket,
        metrics: InferenceMetrics,
        announce: Callable[[str], None],
    ) -> None:
        self._app = app
        self._service: ServiceContext = app.state.service
        self._settings = self._service.settings
        self._sock = sock
        self._metrics = metrics
        self._announce = announce
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()
        self._in_terminal = False
        self.uvicorn_config = uvicorn.Config(
            app,
            http=http_protocol(),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            # It counts from the closing of the listener, then cancels what is left.
            timeout_graceful_shutdown=math.ceil(self._settings.drain_s) + GRACE_S,
            proxy_headers=False,  # nothing here depends on who the client is
        )
        self._uvicorn = _UvicornServer(self.uvicorn_config)

    async def run(self) -> None:
        """Serve until stopped. Raises `OperatorError` when the model cannot be loaded."""
        loop = asyncio.get_running_loop()
        # A background job may outlive its terminal, and `nohup` asks for that.
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._in_terminal = foreground_group() == os.getpgrp() and not ignored
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        async with self._app.router.lifespan_context(self._app):
            serving = asyncio.create_task(self._uvicorn.serve([self._sock]))
            ready = asyncio.create_task(self._announce_ready())
            stop = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({serving, ready, stop}, return_when=asyncio.FIRST_COMPLETED)
                if ready.done() and ready.exception() is not None:
                    self._stop_now.set()  # no balancer has sent anything here yet
                else:
                    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
                await self._drain()
                await serving
                if ready.done():
                    ready.result()
            finally:
                for task in (ready, stop, *self._reloads):
                    task.cancel()
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    loop.remove_signal_handler(number)

    async def _announce_ready(self) -> None:
        await self._service.backend.wait_ready()
        # What was made so far stays. Unless the collector is told, it goes through all of it again
        # and again, for a fifth of the event loop's processor time under load.
        gc.collect()
        gc.freeze()
        self._announce(local_url(*self._sock.getsockname()[:2]))

    def stop(self) -> None:
        """Drain; when called again, end at once what is still in flight."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        """Reload, unless the terminal that the service was started in was closed."""
        if self._in_terminal and foreground_group() is None:
            self._stop.set()  # not `stop`: some shells send the signal twice
        else:
            task = asyncio.create_task(self._reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        # Keys first and by themselves: a key that was revoked must not live on because a model does
        # not load, or until it has.
        keys_taken = self._reload_keys()
        try:
            info = await self._service.backend.reload()
        except OperatorError as error:
            self._metrics.reloaded(ok=False)
            log.error("reload refused", extra={"reason": str(error)})
        else:
            self._metrics.reloaded(ok=keys_taken)
            log.info("reloaded", extra={"model": info.version})

    def _reload_keys(self) -> bool:
        """Read the API keys again, if there is a file of them. Whether it was not refused."""
        if self._settings.api_keys_file is None:
            return True
        try:
            self._service.keys.load()
        except OperatorError as error:
            log.error("API keys refused", extra={"reason": str(error)})
            return False
        log.info("API keys reloaded")
        return True

    async def _drain(self) -> None:
        """Not ready at once; then no new connections; then what was accepted gets its time."""
        admission = self._service.admission
        admission.start_failing_readiness()
        self._metrics.begin_draining()
        if not self._stop_now.is_set():  # else nothing was served: the start failed
            log.info("draining", extra={"requests_in_flight": admission.requests})
        stop_now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait({stop_now}, timeout=self._settings.drain_delay_s)
        admission.stop_admitting()
        self._uvicorn.should_exit = True
        idle = asyncio.create_task(admission.idle.wait())
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait({idle, stop_now}, timeout=self._settings.drain_s, return_when=first)
        idle.cancel()
        stop_now.cancel()
        admission.abort_all(DrainingError("The service shut down before this request was done."))
