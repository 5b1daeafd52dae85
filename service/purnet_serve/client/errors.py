"""What can go wrong for a client, as one tree.

PurNetError
├── PhotoError      the photo cannot be read: here, or by the service (413, 415, 422)
├── ApiKeyError     the service asks for a key, or does not know this one (401, 403)
├── RequestError    any other 4xx: a parameter, or the address of something else
├── BusyError       too much to do, or not ready (429, 503), and no more retries
├── DeadlineError   the time was over, there (504) or here
├── ServerError     any other 5xx, or an answer that is not one of PurNet Serve
└── NoAnswerError   no connection, or it broke, and no more retries
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PurNetError(Exception):
    """Base of the tree.

    `detail` is one sentence. `code` is the service's stable code (docs/api.md has the table), or
    one of `unreadable`, `deadline`, `no_answer` and `no_purnet` where the service gave none;
    `status` and `request_id` are None where it gave no answer; the request id is in its log.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        parameter: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        """Seconds after which the service asked to be called again."""
        self.parameter = parameter
        """The parameter or header that the service refused."""

    def __str__(self) -> str:
        told = [self.code] if self.status is None else [str(self.status), self.code]
        if self.request_id is not None:
            told.append(f"request {self.request_id}")
        return f"{self.detail} ({', '.join(told)})"


class PhotoError(PurNetError):
    """The photo cannot be read, or is more than the service takes."""


class ApiKeyError(PurNetError):
    """The service asks for an API key, or does not know the one it was given."""


class RequestError(PurNetError):
    """The service refused the request for what it asks."""


class BusyError(PurNetError):
    """The service has too much to do or is not ready, still after every retry."""


class DeadlineError(PurNetError):
    """The time for this photo was over."""


class ServerError(PurNetError):
    """The service failed, or what answers is not PurNet Serve."""


class NoAnswerError(PurNetError):
    """The service cannot be reached, or the connection broke."""


_PHOTO_STATUSES = (413, 415, 422)
_PHOTO_CODES = ("empty_body", "missing_image")
BUSY_STATUSES = (429, 503)


def from_answer(status: int, headers: Mapping[str, str], problem: Any) -> PurNetError:
    """The error for an answer that is no picture; `problem` is its JSON, or None."""
    members = problem if isinstance(problem, dict) else {}
    code = members.get("code")
    if not isinstance(code, str):
        code = "no_purnet"  # a proxy's own page, or another service
    kind: type[PurNetError] = ServerError if status >= 500 else RequestError
    if status in BUSY_STATUSES:
        kind = BusyError
    elif status in (408, 504):
        kind = DeadlineError
    elif status in (401, 403):
        kind = ApiKeyError
    elif status in _PHOTO_STATUSES or code in _PHOTO_CODES:
        kind = PhotoError
    detail = members.get("detail")
    return kind(
        detail if isinstance(detail, str) else f"The answer was HTTP {status}.",
        code=code,
        status=status,
        request_id=headers.get("x-request-id"),
        retry_after_s=_seconds(headers.get("retry-after", "")),
        parameter=members.get("parameter"),
    )


def _seconds(value: str) -> float | None:
    """`Retry-After` in seconds; a date, which only proxies send, counts as none."""
    return float(value) if value.isascii() and value.isdigit() else None
