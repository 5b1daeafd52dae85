"""Every error a client can be told about. Each class owns its HTTP status and its stable code.

ServiceError
├── BadRequestError            400  the request itself is malformed
├── ...
└── InternalError              500  our fault

The handler in `app.py` turns any of them into an RFC 9457 problem document.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base of every error that reaches a client.

    `detail` says what was wrong in one sentence a stranger understands; `limit` and `actual`
    name the bound and the value where there is one.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        limit: int | float | str | None = None,
        actual: int | float | str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.limit = limit
        self.actual = actual
        self.retry_after_s = retry_after_s
