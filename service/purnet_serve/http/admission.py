"""Who may come in: readiness, keys, requests and bytes in flight. Knows nothing of ASGI.

What is over these limits is refused at once; what was accepted waits for room instead (`room.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

from purnet_serve.errors import (
    BodyTooLargeError,
    BusyError,
    DrainingError,
    KeyMissingError,
    KeyUnknownError,
    NotReadyError,
    OperatorError,
    ServiceError,
    TooManyBytesError,
)
from purnet_serve.images.thread_pool import Reservation
from purnet_serve.settings import Settings

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class KeysError(OperatorError):
    """The file of API keys cannot be used; the keys known before go on."""


class Keys:
    """sha256 digests of the API keys that open the door; without a file the door is open."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._digests: tuple[bytes, ...] = ()

    def load(self) -> None:
        """Read the file and go by it. Raises `KeysError`, changing nothing, for no list of keys."""
        self.adopt(self.read())

    def adopt(self, digests: tuple[bytes, ...]) -> None:
        """Go by what `read` returned from now on."""
        self._digests = digests

    def read(self) -> tuple[bytes, ...]:
        """The digests in the file, not yet gone by. Raises `KeysError` for no list of keys."""
        if self._file is None:
            return ()
        try:
            text = self._file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"cannot read the API keys in {self._file}: {error}") from error
        lines = [line.strip().lower() for line in text.splitlines()]
        digests = [line for line in lines if line and not line.startswith("#")]
        for number, line in enumerate(lines, 1):
            if line in digests and not _SHA256_HEX.fullmatch(line):
                raise KeysError(f"{self._file}, line {number}: not a sha256 in hex")
        if not digests:
            raise KeysError(f"{self._file} names no key, which would lock everybody out")
        return tuple(bytes.fromhex(line) for line in digests)

    def check(self, key: str | None) -> None:
        """Raises `KeyMissingError` or `KeyUnknownError`. Its time tells nothing."""
        if self._file is None:
            return
        if not key:
            raise KeyMissingError("Send an API key as `X-Api-Key` or `Authorization: Bearer`.")
        offered = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        if not any(matches):
            raise KeyUnknownError("This API key is not known here.")


class Lease:
    """An admitted request's share of the limits. Given back exactly once, however it ends."""

    def __init__(self, admission: Admission, reserved: int) -> None:
        self._admission = admission
        self.bytes = reserved
        self.abort: Callable[[ServiceError], None] = lambda _: None
        """Ends the request early with this error; set by who runs it."""
        self.answer: Reservation | None = None
        """Memory reserved for the answer, once there is one."""

    def resize(self, held: int) -> None:
        """Account for the bytes that are really held now."""
        self._admission.bytes += held - self.bytes
        self.bytes = held

    def release(self) -> None:
        """Give everything back; a second call does nothing."""
        self._admission.forget(self)
        if self.answer is not None:
            self.answer.resize(0)
            self.answer = None


class Admission:
    """Counts what is in flight and says no. Everything runs on the event loop."""

    def __init__(self, settings: Settings, not_ready: Callable[[], str | None]) -> None:
        self._settings = settings
        self._not_ready = not_ready
        self._leases: set[Lease] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.bytes = 0
        self.leaving = False
        self.draining = False

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return len(self._leases)

    def unavailable(self) -> ServiceError | None:
        """Why no image can be taken now; None when it can."""
        retry = self._settings.retry_after_s
        if self.draining:
            return DrainingError("The service is shutting down.", retry_after_s=retry)
        if (reason := self._not_ready()) is not None:
            return NotReadyError(f"Not ready: {reason.rstrip('.')}.", retry_after_s=retry)
        return None

    def unready(self) -> ServiceError | None:
        """Why a balancer should send nothing here any more; None when it should."""
        if self.leaving:
            retry = self._settings.retry_after_s
            return DrainingError("The service is about to shut down.", retry_after_s=retry)
        return self.unavailable()

    def admit(self, content_length: int | None) -> Lease:
        """Take a request in, by what it announces; None is a body of unknown length.

        Raises `BusyError`, `TooManyBytesError` or `BodyTooLargeError`.
        """
        limits = self._settings
        if self.requests >= limits.max_requests_in_flight:
            raise BusyError(
                "As many requests as this service holds are in flight.",
                limit=limits.max_requests_in_flight,
                retry_after_s=limits.retry_after_s,
            )
        reserved = limits.max_body_bytes
        if content_length is not None:
            reserved = min(content_length, limits.max_body_bytes)
        if self.bytes + reserved > limits.max_bytes_in_flight:
            raise TooManyBytesError(
                "As many bytes as this service holds are in flight.",
                limit=limits.max_bytes_in_flight,
                retry_after_s=limits.retry_after_s,
            )
        if content_length is not None and content_length > limits.max_body_bytes:
            raise too_large(limits.max_body_bytes, content_length)
        lease = Lease(self, reserved)
        self._leases.add(lease)
        self.bytes += reserved
        self._idle.clear()
        return lease

    def forget(self, lease: Lease) -> None:
        """Called by a lease that is released."""
        if lease in self._leases:
            self._leases.remove(lease)
            self.bytes -= lease.bytes
            if not self._leases:
                self._idle.set()

    def leave(self) -> None:
        """Tell balancers to look elsewhere; until they have noticed, requests are still taken."""
        self.leaving = True

    def drain(self) -> None:
        """Admit nothing any more; what is in flight goes on."""
        self.draining = True

    async def idle(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()

    def abort_all(self, error: ServiceError) -> None:
        """End every request in flight with this error."""
        for lease in list(self._leases):
            lease.abort(error)


def too_large(limit: int, actual: int) -> BodyTooLargeError:
    """The error for a body of `actual` bytes, announced or counted."""
    return BodyTooLargeError(f"The body may have {limit} bytes.", limit=limit, actual=actual)
