"""A photo from a URL: https, public addresses, a bounded number of bytes and seconds.

A client names the URL, so this service connects where a stranger tells it to. A host's name is
resolved once, all its addresses must be public, and the connection goes to one of them whatever
the name resolves to later (DNS rebinding). TLS still asks for the name: the certificate must be
the host's. A redirect is a new URL and is checked like the first. No proxy is used.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore
import httpx

from purnet_serve.errors import FetchError, UrlRefusedError
from purnet_serve.http.addresses import is_public
from purnet_serve.settings import Settings

MAX_REDIRECTS = 3
MAX_URL_CHARS = 2048
MAX_ADDRESSES = 3
"""Addresses of a host that are tried."""
_REDIRECTS = (301, 302, 303, 307, 308)
_ASCII = bytes(range(128))
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # what is counted is what is decoded
    "User-Agent": "purnet-serve",
}

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, by the system. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Fetches photos, if the service is set to. Names, certificates and sockets may be a test's."""

    def __init__(
        self,
        settings: Settings,
        *,
        resolve: Resolve = resolve,
        trust: ssl.SSLContext | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._trust = trust
        self._network = network

    def check_on(self) -> None:
        """Raise `UrlRefusedError` where the service fetches nothing."""
        if not self._settings.fetch_urls:
            detail = "This service fetches no URLs; send the photo itself."
            raise UrlRefusedError(detail)

    async def fetch(self, url: str, deadline: float) -> bytes:
        """The bytes at a URL, of whatever type they are said to be.

        `deadline` is in seconds on the event loop's clock. Raises `UrlRefusedError` for a URL that
        is not fetched and `FetchError` when no photo arrives in time and size.
        """
        self.check_on()
        seconds = self._settings.fetch_timeout_s
        until = min(asyncio.get_running_loop().time() + seconds, deadline)
        try:
            async with asyncio.timeout_at(until):
                return await self._follow(url)
        except TimeoutError:
            raise FetchError("The photo at the URL did not arrive in time.") from None

    async def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            body, location = await self._get(_checked(url))
            if location is None:
                return body
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise UrlRefusedError("The URL redirects to what is not a valid URL.") from error
        detail = f"The URL redirects more than {MAX_REDIRECTS} times."
        raise FetchError(detail, limit=MAX_REDIRECTS)

    async def _get(self, url: SplitResult) -> tuple[bytes, str | None]:
        """The body at a URL, or where it redirects to."""
        pinned = _PinnedNetwork(await self._addresses(url), self._network)
        if self._trust is None:  # made once, and only where something is fetched
            self._trust = httpx.create_ssl_context(trust_env=False)
        pool = httpcore.AsyncConnectionPool(ssl_context=self._trust, network_backend=pinned)
        try:
            async with pool, pool.stream("GET", url.geturl(), headers=_HEADERS) as answer:
                return await self._read(answer)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise FetchError("The host of the URL gave no valid answer.") from error

    async def _addresses(self, url: SplitResult) -> list[str]:
        host, port = url.hostname or "", url.port or 443
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise FetchError("The host of the URL has no address.") from error
        if not addresses or not all(map(is_public, addresses)):
            raise UrlRefusedError("The host of the URL is not on the public internet.")
        return addresses[:MAX_ADDRESSES]

    async def _read(self, answer: httpcore.Response) -> tuple[bytes, str | None]:
        headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
        if answer.status in _REDIRECTS and b"location" in headers:
            # Bytes that are not ASCII stay what they are, whatever encoding the host means.
            return b"", quote(headers[b"location"].encode("latin-1"), safe=_ASCII)
        if answer.status != 200:
            detail = f"The host of the URL answered with status {answer.status}."
            raise FetchError(detail, actual=answer.status)
        most, body = self._settings.max_body_bytes, bytearray()
        async for chunk in answer.aiter_stream():
            body += chunk
            if len(body) > most:
                raise FetchError(f"The photo at the URL has more than {most} bytes.", limit=most)
        if not body:
            raise FetchError("There is nothing at the URL.")
        return bytes(body), None


class _PinnedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to given addresses, whatever host it is asked for."""

    def __init__(
        self, addresses: Iterable[str], network: httpcore.AsyncNetworkBackend | None
    ) -> None:
        self._addresses = tuple(addresses)
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109, the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first of the addresses that answers."""
        failure: httpcore.ConnectError | None = None
        for address in self._addresses:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
        raise failure or httpcore.ConnectError(host)


def _checked(url: str) -> SplitResult:
    """A URL of https with a host, without credentials, in ASCII. Raises `UrlRefusedError`.

    Path and query are percent-encoded where they are not ASCII (RFC 3987, 3.1).
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        ascii_host = host if ":" in host else host.encode("idna").decode("ascii")
        path, query = quote(parts.path, safe=_ASCII), quote(parts.query, safe=_ASCII)
    except ValueError as error:
        raise UrlRefusedError("The URL is not valid.") from error
    if parts.scheme != "https":
        raise UrlRefusedError("A URL must begin with https://.")
    if not host or parts.username is not None or len(url) > MAX_URL_CHARS or port == 0:
        raise UrlRefusedError("A URL has a host, no user, and at most 2048 characters.")
    if not url.isprintable() or " " in url:
        raise UrlRefusedError("The URL is not valid.")
    host = f"[{host}]" if ":" in host else ascii_host
    netloc = host if port is None else f"{host}:{port}"
    return parts._replace(netloc=netloc, path=path, query=query, fragment="")
