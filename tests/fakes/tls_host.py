"""A host with a certificate, on a local port, and a network in which it has public addresses."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpcore
import trustme

ADDRESS = "93.184.215.14"
HOST = "photos.example"

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
"""Writes what is answered to a request for a path."""


class Network(httpcore.AsyncNetworkBackend):
    """Leads every address to one local port, and notes which were asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []
        self.dead: set[str] = set()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109, the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.asked.append(host)
        if host in self.dead:
            raise httpcore.ConnectError("refused")
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port, timeout)


@dataclass
class TlsHost:
    """The running host; `seen` are the request lines and Host headers it was sent."""

    network: Network
    trust: ssl.SSLContext
    seen: list[tuple[str, str]] = field(default_factory=list)


@asynccontextmanager
async def tls_host(answer: Answer, *, name: str = HOST) -> AsyncIterator[TlsHost]:
    """Serve `answer` over TLS with a certificate for `name`."""
    authority = trustme.CA()
    certificate, trust = (
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert(name).configure_cert(certificate)
    authority.configure_trust(trust)
    host = TlsHost(Network(0), trust)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            named = next(line[6:] for line in head if line.lower().startswith("host: "))
            path = head[0].split(" ")[1]
            host.seen.append((path, named))
            await answer(path, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate)
    host.network.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()


async def send(
    writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK", **headers: str
) -> None:
    """Write a whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
