"""The two clients: the steps of `exchange` done by threads, and by asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import urlsplit

import httpx

from purnet_serve.client.errors import NoAnswerError, PurNetError
from purnet_serve.client.exchange import (
    AttemptResult,
    Done,
    Exchange,
    Options,
    Output,
    Request,
    RetryPolicy,
    Send,
    Wait,
    exchange,
    mask_request,
)
from purnet_serve.client.photos import Photo, read_photo
from purnet_serve.client.result import Outcome, Result, not_purnet, read_result

Progress = Callable[[int, int | None], object]
"""Called after each photo that is done, well or not: how many are, and of how many; None where the
photos have no length."""

READAHEAD_FACTOR = 2
"""Photos under way or answered, for each that is sent at the same time, before the oldest is asked
for: enough that one slow photo does not leave the service idle."""

T = TypeVar("T")


class _Client:
    """What both clients have."""

    def __init__(self, url: str, api_key: str | None, retries: RetryPolicy | None) -> None:
        parts = urlsplit(url)  # `port` raises ValueError for one that is no number
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"{url!r} is no address; write http://HOST:PORT")
        try:
            httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"{url!r} is no address: {error}") from None
        if api_key is not None and not api_key.isprintable():
            raise ValueError("the API key has characters that no header may have")
        self._url = url.rstrip("/")
        self._key = {} if api_key is None else {"X-Api-Key": api_key.encode()}
        self._retries = retries or RetryPolicy()

    def _arguments(self, request: Request, step: Send) -> dict[str, Any]:
        """The arguments of httpx for one attempt."""
        return {
            "method": request.method,
            "url": self._url + request.path,
            "params": request.params,
            "headers": {**self._key, **step.headers},
            "content": request.body,
            "timeout": step.timeout,
        }


class PurNetClient(_Client):
    """Masks and cutouts from a running service. Threads may share one client.

    `url` is where the service listens, with its path prefix if it has one. `http` is a client of
    httpx of your own, for certificates or proxies; it is not closed here. Photos are paths, bytes
    of image files, files opened in binary mode, or Pillow images. Raises `ValueError` for a bad
    address or key; everything else that goes wrong is a `PurNetError`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retries: RetryPolicy | None = None,
        http: httpx.Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        super().__init__(url, api_key, retries)
        self._own = http is None
        self._http = http or httpx.Client()
        self._clock = clock
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def mask(self, photo: Photo, **options: Unpack[Options]) -> Result:
        """Find the salient object: an 8-bit grey mask of the photo's displayed size."""
        return self._answer(photo, "mask", options, threading.Event())

    def cutout(self, photo: Photo, **options: Unpack[Options]) -> Result:
        """Cut the salient object out: the photo as RGBA, with the mask as its alpha."""
        return self._answer(photo, "cutout", options, threading.Event())

    def many(
        self,
        photos: Iterable[Photo],
        *,
        output: Output = "mask",
        concurrency: int = 4,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Outcome]:
        """Send many photos, `concurrency` at the same time; their outcomes come in order.

        A photo is read when it is due, and a few answers are kept until they are asked for, so
        memory does not grow with their number. A photo that fails does not end the rest. To leave
        early sends nothing more, and takes until the requests under way have ended. `progress` is
        called from other threads, one call at a time.
        """
        run = _Run(photos, concurrency, progress)
        pending: deque[Future[Outcome]] = deque()
        ended = threading.Event()

        def work(photo: Photo) -> Outcome:
            try:
                outcome = Outcome(photo, self._answer(photo, output, options, ended), None)
            except PurNetError as error:
                outcome = Outcome(photo, None, error)
            run.count()
            return outcome

        with ThreadPoolExecutor(concurrency) as threads:
            try:
                for photo in photos:
                    pending.append(threads.submit(work, photo))
                    if len(pending) >= run.ahead:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                ended.set()
                for future in pending:
                    future.cancel()

    def model(self) -> str | None:
        """The version of the model that answers; None while none is loaded."""
        return self._run(Request("GET", "/v1/models"), read_model, threading.Event())

    def _answer(
        self, photo: Photo, output: Output, options: Options, ended: threading.Event
    ) -> Result:
        return self._run(mask_request(read_photo(photo), output, options), read_result, ended)

    def _run(
        self, request: Request, read: Callable[[httpx.Response], T], ended: threading.Event
    ) -> T:
        """Carry the steps out, until `ended` is set: then nobody waits for the result."""
        steps: Exchange[T] = exchange(request, read, self._retries, self._clock)
        step = next(steps)
        while not isinstance(step, Done):
            step = steps.send(self._do(request, step, ended))
            if ended.is_set():
                raise NoAnswerError("Nobody waits for this photo any longer.", code="no_answer")
        return step.result

    def _do(self, request: Request, step: Send | Wait, ended: threading.Event) -> AttemptResult:
        if isinstance(step, Wait):
            (self._sleep or ended.wait)(step.seconds)
            return None
        try:
            return self._http.request(**self._arguments(request, step))
        except httpx.RequestError as error:
            return error


class AsyncPurNetClient(_Client):
    """`PurNetClient` for asyncio: the same arguments, results and errors, awaited."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retries: RetryPolicy | None = None,
        http: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(url, api_key, retries)
        self._own = http is None
        self._http = http or httpx.AsyncClient()
        self._clock = clock
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def mask(self, photo: Photo, **options: Unpack[Options]) -> Result:
        """See `PurNetClient.mask`."""
        return await self._answer(photo, "mask", options)

    async def cutout(self, photo: Photo, **options: Unpack[Options]) -> Result:
        """See `PurNetClient.cutout`."""
        return await self._answer(photo, "cutout", options)

    async def many(
        self,
        photos: Iterable[Photo],
        *,
        output: Output = "mask",
        concurrency: int = 4,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[Outcome]:
        """See `PurNetClient.many`; `progress` is called on the event loop.

        To leave early, by `aclose`, ends the requests under way at once.
        """
        run = _Run(photos, concurrency, progress)
        pending: deque[asyncio.Task[Outcome]] = deque()
        places = asyncio.Semaphore(concurrency)

        async def work(photo: Photo) -> Outcome:
            async with places:
                try:
                    outcome = Outcome(photo, await self._answer(photo, output, options), None)
                except PurNetError as error:
                    outcome = Outcome(photo, None, error)
            run.count()
            return outcome

        try:
            for photo in photos:
                pending.append(asyncio.create_task(work(photo)))
                if len(pending) >= run.ahead:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def model(self) -> str | None:
        """See `PurNetClient.model`."""
        return await self._run(Request("GET", "/v1/models"), read_model)

    async def _answer(self, photo: Photo, output: Output, options: Options) -> Result:
        data = await asyncio.to_thread(read_photo, photo)
        return await self._run(mask_request(data, output, options), read_result)

    async def _run(self, request: Request, read: Callable[[httpx.Response], T]) -> T:
        steps: Exchange[T] = exchange(request, read, self._retries, self._clock)
        step = next(steps)
        while not isinstance(step, Done):
            step = steps.send(await self._do(request, step))
        return step.result

    async def _do(self, request: Request, step: Send | Wait) -> AttemptResult:
        if isinstance(step, Wait):
            await self._sleep(step.seconds)
            return None
        try:
            return await self._http.request(**self._arguments(request, step))
        except httpx.RequestError as error:
            return error


class _Run:
    """What `many` of both clients keeps: how far it reads ahead, and how many photos are done."""

    def __init__(
        self, photos: Iterable[Photo], concurrency: int, progress: Progress | None
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"at least one photo is sent at a time, not {concurrency}")
        self.ahead = READAHEAD_FACTOR * concurrency
        self._progress = progress
        self._total = len(photos) if isinstance(photos, Sized) else None
        self._done = 0
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)


def read_model(answer: httpx.Response) -> str | None:
    """The version in an answer of `/v1/models`. Raises `ServerError` for one of something else."""
    try:
        models = answer.json()["models"]
        return str(models[0]["version"]) if models else None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise not_purnet(answer) from error
