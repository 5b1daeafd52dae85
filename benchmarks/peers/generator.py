"""The process that sends one step of load: a `Load` as JSON comes in, an `Outcome` goes out.

Closed loop: some clients that never pause. Open loop: Poisson arrivals, whether or not answers
come; latency counts from when a request was due, so that neither a late generator nor a full server
hides it. Bodies are made beforehand, connections are kept alive, and nobody waits longer than
`timeout_s`: then the connection is cut, as by a person who closes the page.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
from benchmarks.peers.arrivals import order, poisson
from pydantic import TypeAdapter

OK = "200"
GAVE_UP = "gave up"
KEEP_ALIVE_S = 3.0
"""An idle connection is not used after this long: uvicorn closes them after 5."""
PAUSE_S = 0.01
"""After a refusal a client of the closed loop would only spin."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Target:
    """How a peer is asked."""

    url: str
    headers: Mapping[str, str]
    form_file: str | None
    form_fields: Mapping[str, str]

    def request(self, photo: bytes) -> httpx.Request:
        """A JPEG as the body, or in a form."""
        if self.form_file is None:
            headers = {**self.headers, "Content-Type": "image/jpeg"}
            return httpx.Request("POST", self.url, headers=headers, content=photo)
        files = {self.form_file: ("photo.jpg", photo, "image/jpeg")}
        fields = dict(self.form_fields)
        request = httpx.Request("POST", self.url, headers=self.headers, data=fields, files=files)
        request.read()
        return request


@dataclass(frozen=True)
class Load:
    """One step."""

    target: Target
    photos: list[Path]
    clients: int | None
    """Of the closed loop; None for the open one."""
    rate: float | None
    """Requests a second of the open loop."""
    ramp_s: float
    """Part at the beginning that is not counted."""
    seconds: float
    """Counted part after it."""
    timeout_s: float
    seed: str


@dataclass(frozen=True)
class Request:
    """What came of one request. Times are from the beginning of the step."""

    due_s: float
    answered_s: float
    sent_late_s: float
    status: str
    """HTTP status, or why there is none."""


@dataclass(frozen=True)
class Outcome:
    """All requests of a step, in the order they ended."""

    requests: list[Request]
    cpu_s: float
    """Processor time of the generator."""


class Sender:
    """Sends the photos of a step, which begins now."""

    def __init__(
        self, session: aiohttp.ClientSession, load: Load, photos: list[httpx.Request]
    ) -> None:
        self._photos = [(dict(request.headers), request.content) for request in photos]
        self._session, self._load = session, load
        self._began_s = asyncio.get_running_loop().time()
        self.done: list[Request] = []

    def now_s(self) -> float:
        """Since the beginning of the step."""
        return asyncio.get_running_loop().time() - self._began_s

    async def send(self, due_s: float, photo: int) -> str:
        """Send one request, note what came of it, and return its status."""
        late_s = self.now_s() - due_s
        try:
            async with asyncio.timeout_at(self._began_s + due_s + self._load.timeout_s):
                status = await self._post(photo)
        except TimeoutError:
            status = GAVE_UP
        except (aiohttp.ClientError, OSError) as error:
            status = type(error).__name__
        self.done.append(Request(due_s, self.now_s(), late_s, status))
        return status

    async def _post(self, photo: int) -> str:
        headers, body = self._photos[photo]
        async with self._session.post(self._load.target.url, headers=headers, data=body) as answer:
            content = await answer.read()
        status = str(answer.status)
        return "no PNG" if status == OK and not content.startswith(_PNG) else status


async def closed_loop(sender: Sender, load: Load, clients: int) -> None:
    """A request is due as soon as its client's one before is answered."""
    photos = order(len(load.photos), load.seed)

    async def client(number: int) -> None:
        while (due_s := sender.now_s()) < load.ramp_s + load.seconds:
            status = await sender.send(due_s, photos[number % len(photos)])
            number += clients
            if status != OK:
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(client(number) for number in range(clients)))


async def open_loop(sender: Sender, load: Load, rate: float) -> None:
    """Requests leave when they are due, however many are under way."""
    async with asyncio.TaskGroup() as requests:
        for each in poisson(rate, load.ramp_s + load.seconds, len(load.photos), load.seed):
            wait_s = each.due_s - sender.now_s()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            requests.create_task(sender.send(each.due_s, each.photo))


async def run(load: Load) -> list[Request]:
    """Send a step and wait for its last answer."""
    photos = [load.target.request(path.read_bytes()) for path in load.photos]
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:
        sender = Sender(session, load, photos)
        if load.clients is not None:
            await closed_loop(sender, load, load.clients)
        elif load.rate is not None:
            await open_loop(sender, load, load.rate)
        return sender.done


def main() -> None:
    """Read the load from standard input, write the outcome to standard output."""
    requests = asyncio.run(run(TypeAdapter(Load).validate_json(sys.stdin.buffer.read())))
    used = resource.getrusage(resource.RUSAGE_SELF)
    outcome = Outcome(requests, used.ru_utime + used.ru_stime)
    sys.stdout.buffer.write(TypeAdapter(Outcome).dump_json(outcome))


if __name__ == "__main__":
    main()
