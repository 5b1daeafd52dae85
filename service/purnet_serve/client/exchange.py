"""One request with all its retries, as steps that do no I/O.

`exchange` yields what is to be done next: send this, or wait so long. `PurNetClient` does it with
threads and `AsyncPurNetClient` with asyncio; what is sent, when it is sent again and how an answer
is read is written once, here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypedDict, TypeVar

import httpx

from purnet_serve.client.errors import (
    BUSY_STATUSES,
    DeadlineError,
    NoAnswerError,
    PurNetError,
    from_answer,
)

CONNECT_TIMEOUT_S = 5.0
ANSWER_GRACE_S = 2.0
"""Seconds beyond the deadline in which the service's own 504 is waited for: it says more."""
MIN_TIMEOUT_S = 0.1
"""With less, the service would refuse the request."""
TIMEOUT_HEADER = "X-Timeout-Ms"
MAX_TIMEOUT_S = 60.0
"""The most that a service takes in this header unless it is set otherwise."""

MAX_JITTER = 1.3
"""Clients that were refused together must not all come back together."""

Output = Literal["mask", "cutout"]
T = TypeVar("T")


class Options(TypedDict, total=False):
    """The parameters of `POST /v1/mask`; docs/api.md describes them."""

    size: Literal["original", "model"]
    threshold: int
    format: Literal["png", "webp"]


def _jitter() -> float:
    return random.uniform(1.0, MAX_JITTER)  # noqa: S311  (no secret)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a request is sent again: after 429, 503, and a connection that failed or broke.

    That is safe: the same photo twice is the same mask twice. Before each retry the client waits
    what `Retry-After` says, or longer where `first_wait_s`, doubled each time, is more; and up to
    30 % longer than that, by chance.
    """

    timeout_s: float = 30.0
    """Seconds for one photo, retries and waits included. An answer that has begun to arrive may
    take longer, as long as it goes on arriving."""
    retries: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 5.0
    jitter: Callable[[], float] = _jitter
    """Gives what each wait is multiplied by, 1 or more."""

    def wait_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Seconds to wait after the failure of an attempt; the first one is number 0."""
        doubled = min(self.first_wait_s * 2.0**attempt, self.longest_wait_s)
        return max(doubled, retry_after_s or 0.0) * self.jitter()


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, the same in every attempt."""

    method: Literal["GET", "POST"]
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Send:
    """A step: send the request with these headers and bounds; give back what came of it."""

    headers: Mapping[str, str]
    timeout: httpx.Timeout


@dataclass(frozen=True, slots=True)
class Wait:
    """A step: do nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The last step: this is the result."""

    result: T


AttemptResult = httpx.Response | httpx.RequestError | None
Exchange = Generator[Send | Wait | Done[T], AttemptResult, None]


def mask_request(photo: bytes, output: Output, options: Options) -> Request:
    """The request for one photo."""
    params = {name: str(value) for name, value in options.items() if value is not None}
    return Request("POST", "/v1/mask", {"output": output, **params}, photo)


def exchange(
    request: Request,
    read: Callable[[httpx.Response], T],
    policy: RetryPolicy,
    clock: Callable[[], float],
) -> Exchange[T]:
    """The steps of one request; the result is what `read` makes of its 200.

    Raises an error of the tree as soon as no retry can succeed in time.
    """
    until = clock() + policy.timeout_s
    attempt = 0
    sends_timeout = True
    while True:
        left_s = until - clock()
        if left_s < MIN_TIMEOUT_S:
            raise DeadlineError(f"The {policy.timeout_s} s were over.", code="deadline")
        result = yield _send(request, left_s, sends_timeout=sends_timeout)
        error = _error(result, policy)
        if error is None and isinstance(result, httpx.Response):
            yield Done(read(result))
            return
        if error is None:
            raise TypeError("a request that was sent brings an answer or an error")
        if error.parameter == TIMEOUT_HEADER and sends_timeout:
            sends_timeout = False  # this service gives less time than that; its own will do
            continue
        wait_s = policy.wait_s(attempt, error.retry_after_s)
        too_late = clock() + wait_s > until - MIN_TIMEOUT_S
        if not _may_succeed_later(error) or attempt >= policy.retries or too_late:
            raise error
        yield Wait(wait_s)
        attempt += 1


def _send(request: Request, left_s: float, *, sends_timeout: bool) -> Send:
    headers = {"Content-Type": "application/octet-stream"} if request.method == "POST" else {}
    if request.method == "POST" and sends_timeout:
        headers[TIMEOUT_HEADER] = str(int(min(left_s, MAX_TIMEOUT_S) * 1000))
    bound = httpx.Timeout(left_s + ANSWER_GRACE_S, connect=min(CONNECT_TIMEOUT_S, left_s))
    return Send(headers, bound)


def _error(result: AttemptResult, policy: RetryPolicy) -> PurNetError | None:
    """What went wrong in an attempt, or None."""
    if isinstance(result, httpx.TimeoutException) and not isinstance(result, httpx.ConnectTimeout):
        return DeadlineError(f"No answer came within {policy.timeout_s} s.", code="deadline")
    if isinstance(result, httpx.RequestError):
        reason = str(result) or type(result).__name__
        return NoAnswerError(f"No answer from the service: {reason}.", code="no_answer")
    if result is None or result.status_code == 200:
        return None
    try:
        problem = result.json()
    except ValueError:
        problem = None
    return from_answer(result.status_code, result.headers, problem)


def _may_succeed_later(error: PurNetError) -> bool:
    return isinstance(error, NoAnswerError) or error.status in BUSY_STATUSES
