"""URLs of strangers, fetched over real TLS from a host whose addresses the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fake_backend import WAIT_S
from tls_host import ADDRESS, HOST, TlsHost, send, tls_host

from purnet_serve.errors import FetchError, ServiceError, UrlRefusedError
from purnet_serve.http.fetch import MAX_REDIRECTS, Fetcher
from purnet_serve.settings import Settings

pytestmark = pytest.mark.anyio
PHOTO = b"\xff\xd8 a photo"
MOST = 10_000
OTHER = "203.0.114.7"


async def answer(path: str, writer: asyncio.StreamWriter) -> None:
    """What the host has at each path."""
    if path == "/photo.jpg":
        await send(writer, PHOTO, Content_Type="text/html")
    elif path.startswith("/hop/"):
        left = int(path.removeprefix("/hop/"))
        await send(writer, b"", "302 Found", Location=f"{left - 1}" if left else "/photo.jpg")
    elif path == "/%C3%BC.jpg?q=%C3%A9":
        await send(writer, PHOTO)
    elif path == "/umlaut":  # its bytes as UTF-8, as many hosts send them
        await send(writer, b"", "302 Found", Location="/\u00fc.jpg?q=\u00e9")
    elif path == "/bracket":
        await send(writer, b"", "302 Found", Location="https://[")
    elif path.startswith("/to/"):
        await send(writer, b"", "307 Temporary Redirect", Location=path.removeprefix("/to/"))
    elif path == "/huge":
        await send(writer, bytes(MOST + 1))
    elif path == "/endless":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + bytes(1024) + b"\r\n")
            await writer.drain()
    elif path == "/slow":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
        await writer.drain()
        await asyncio.sleep(WAIT_S)
    elif path == "/silent":
        await asyncio.sleep(WAIT_S)
    elif path == "/cut":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
    elif path == "/garbage":
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    elif path == "/empty":
        await send(writer, b"")
    else:
        await send(writer, b"no", "404 Not Found")


@pytest.fixture
async def host() -> AsyncIterator[TlsHost]:
    async with tls_host(answer) as running:
        yield running


class Names:
    """A resolver that answers from a list, each time with the next entry, and counts."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers) or [[ADDRESS]]
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def fetcher(host: TlsHost, names: Names | None = None, **settings: object) -> Fetcher:
    values = {"fetch_urls": True, "max_body_bytes": MOST, **settings}
    return Fetcher(
        Settings(**values),  # type: ignore[arg-type]
        resolve=names or Names(),
        trust=host.trust,
        network=host.network,
    )


async def fetch(host: TlsHost, url: str, names: Names | None = None, **settings: object) -> bytes:
    deadline = asyncio.get_running_loop().time() + WAIT_S
    return await fetcher(host, names, **settings).fetch(url, deadline)


async def test_a_photo_is_fetched_by_its_name_from_its_address(host: TlsHost) -> None:
    assert await fetch(host, f"https://{HOST}/photo.jpg#top") == PHOTO
    assert host.network.asked == [ADDRESS]
    assert host.seen == [("/photo.jpg", HOST)]


@pytest.mark.parametrize("path", ["/\u00fc.jpg?q=\u00e9", "/%C3%BC.jpg?q=%C3%A9", "/umlaut"])
async def test_letters_beyond_ascii_are_percent_encoded(host: TlsHost, path: str) -> None:
    assert await fetch(host, f"https://{HOST}{path}") == PHOTO
    assert host.seen[-1][0] == "/%C3%BC.jpg?q=%C3%A9"


async def test_a_redirect_to_what_is_no_url_is_refused(host: TlsHost) -> None:
    with pytest.raises(UrlRefusedError, match="redirects to what is not a valid URL"):
        await fetch(host, f"https://{HOST}/bracket")


async def test_nothing_is_fetched_unless_switched_on(host: TlsHost) -> None:
    assert Settings().fetch_urls is False
    with pytest.raises(UrlRefusedError, match="fetches no URLs; send the photo itself"):
        await fetch(host, f"https://{HOST}/photo.jpg", fetch_urls=False)
    assert host.network.asked == []


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/photo.jpg", "ftp://x/y", "file:///etc/passwd", "//x/y", "photo.jpg", "",
        "https://", "https:///x", "https://user:word@x/", "https://@x/", "https://x:99999/",
        "https://x:0/", "https://[::1/", "https://a..b/", f"https://x/{'y' * 2048}",
        "https://x/a b", "https://x/\r\nHost: y", "https://x/\x00", "https://\u2100.example\ud800/",
    ],
)  # fmt: skip
async def test_what_is_no_https_url_is_refused_before_anything_is_resolved(
    host: TlsHost, url: str
) -> None:
    names = Names()
    with pytest.raises(UrlRefusedError):
        await fetch(host, url, names)
    assert (names.asked, host.network.asked) == ([], [])


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"], [ADDRESS, "127.0.0.1"], ["192.168.0.1", ADDRESS], [],
    ],
)  # fmt: skip
async def test_a_host_with_an_address_that_is_not_public_is_refused(
    host: TlsHost, addresses: list[str]
) -> None:
    with pytest.raises(UrlRefusedError, match="not on the public internet"):
        await fetch(host, f"https://{HOST}/photo.jpg", Names(addresses))
    assert host.network.asked == []


@pytest.mark.parametrize(
    "written",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]",
     "localhost", "0", "127.0.0.1."],
)  # fmt: skip
async def test_this_machine_is_refused_however_it_is_written(host: TlsHost, written: str) -> None:
    """By the system's own resolver, which reads all of these."""
    real = Fetcher(Settings(fetch_urls=True), trust=host.trust, network=host.network)
    with pytest.raises((UrlRefusedError, FetchError)):
        await real.fetch(f"https://{written}/", asyncio.get_running_loop().time() + WAIT_S)
    assert host.network.asked == []


async def test_a_name_that_changes_its_address_is_asked_for_once(host: TlsHost) -> None:
    """DNS rebinding: public when it is checked, this machine when it is connected to."""
    names = Names([ADDRESS], ["127.0.0.1"])
    assert await fetch(host, f"https://{HOST}/photo.jpg", names) == PHOTO
    assert names.asked == [HOST]
    assert host.network.asked == [ADDRESS]


async def test_a_name_that_changes_between_redirects_is_checked_again(host: TlsHost) -> None:
    names = Names([ADDRESS], ["127.0.0.1"])
    with pytest.raises(UrlRefusedError, match="not on the public internet"):
        await fetch(host, f"https://{HOST}/hop/0", names)
    assert host.network.asked == [ADDRESS]


async def test_another_address_of_the_host_is_tried(host: TlsHost) -> None:
    host.network.dead = {OTHER}
    assert await fetch(host, f"https://{HOST}/photo.jpg", Names([OTHER, ADDRESS])) == PHOTO
    assert host.network.asked == [OTHER, ADDRESS]
    host.network.dead.add(ADDRESS)
    with pytest.raises(FetchError, match="no valid answer"):
        await fetch(host, f"https://{HOST}/photo.jpg", Names([OTHER, ADDRESS]))


async def test_three_redirects_are_followed_and_no_more(host: TlsHost) -> None:
    assert await fetch(host, f"https://{HOST}/hop/{MAX_REDIRECTS - 1}") == PHOTO
    with pytest.raises(FetchError, match="more than 3 times"):
        await fetch(host, f"https://{HOST}/hop/{MAX_REDIRECTS}")


@pytest.mark.parametrize(
    "target", [f"http://{HOST}/photo.jpg", "file:///etc/passwd", "https://u@x"]
)
async def test_a_redirect_to_what_is_not_fetched_is_refused(host: TlsHost, target: str) -> None:
    with pytest.raises(UrlRefusedError):
        await fetch(host, f"https://{HOST}/to/{target}")
    assert len(host.seen) == 1


async def test_a_redirect_to_a_private_host_is_refused(host: TlsHost) -> None:
    names = Names([ADDRESS], ["10.0.0.1"])
    with pytest.raises(UrlRefusedError, match="not on the public internet"):
        await fetch(host, f"https://{HOST}/to/https://internal.example/", names)
    assert names.asked == [HOST, "internal.example"]
    assert len(host.seen) == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/huge", f"more than {MOST} bytes"), ("/endless", f"more than {MOST} bytes"),
        ("/slow", "in time"), ("/silent", "in time"), ("/cut", "no valid answer"),
        ("/garbage", "no valid answer"), ("/empty", "nothing at the URL"), ("/none", "status 404"),
    ],
)  # fmt: skip
async def test_what_does_not_arrive_whole_in_time_and_in_size_is_told(
    host: TlsHost, path: str, said: str
) -> None:
    with pytest.raises(FetchError, match=said):
        await fetch(host, f"https://{HOST}{path}", fetch_timeout_s=0.5 if "s" in path else WAIT_S)


async def test_the_deadline_of_the_request_bounds_it_too(host: TlsHost) -> None:
    until = asyncio.get_running_loop().time() + 0.2
    with pytest.raises(FetchError, match="in time"):
        await fetcher(host, fetch_timeout_s=WAIT_S).fetch(f"https://{HOST}/silent", until)


async def test_the_certificate_must_be_the_host_s(host: TlsHost) -> None:
    with pytest.raises(FetchError, match="no valid answer"):
        await fetch(host, "https://other.example/photo.jpg")
    deadline = asyncio.get_running_loop().time() + WAIT_S
    usual = Fetcher(Settings(fetch_urls=True), resolve=Names(), network=host.network)
    with pytest.raises(FetchError, match="no valid answer"):  # an authority that nobody trusts
        await usual.fetch(f"https://{HOST}/photo.jpg", deadline)
    assert host.seen == []


async def test_a_name_that_does_not_resolve_is_told(host: TlsHost) -> None:
    async def fail(name: str, port: int) -> list[str]:
        raise OSError("unknown")

    failing = Fetcher(Settings(fetch_urls=True), resolve=fail, network=host.network)
    with pytest.raises(ServiceError, match="has no address"):
        await failing.fetch(f"https://{HOST}/", asyncio.get_running_loop().time() + WAIT_S)
