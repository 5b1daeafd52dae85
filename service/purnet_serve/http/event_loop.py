"""The event loop and the HTTP parser: uvloop and httptools, or asyncio and h11 where they lack.

Both are compiled. They take half of the processor time of a small request off, and exist for Linux
and macOS; what clients see is the same with either.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of a request line and its headers; h11 has the same limit."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop if it is installed, else one of asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()

    class Loop(uvloop.Loop):
        """Its own clock has milliseconds and stands still during a callback."""

        def time(self) -> float:
            """Seconds of the monotonic clock."""
            return time.monotonic()

    return Loop()


def http_protocol() -> type[asyncio.Protocol] | str:
    """The protocol for uvicorn: httptools' where it is installed, else `h11`."""
    try:
        from httptools import HttpParserError, HttpParserUpgrade
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class FastProtocol(HttpToolsProtocol):
        """httptools with a bound on headers; a request that it does not take is given to h11.

        It drops the body of a request that offers an upgrade, as Java's own client does with every
        request, and knows neither all methods nor a whole URL without a path as target.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._pending_bytes = 0  # since the last head, piece of a body or end
            # What came of a head that is not complete; None if it begins within other bytes.
            self._head: list[bytes] | None = []
            self._between_requests = True

        def data_received(self, data: bytes) -> None:
            """Parse; refuse a head, or headers behind a body in chunks, that go on and on."""
            self._unset_keepalive_if_required()
            self._pending_bytes += len(data)
            if self._head is not None:
                self._head.append(data)
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade:
                pass  # it was not given to h11 because of an answer that is under way
            except HttpParserError:
                if not self._give_to_h11():
                    self.send_400_response("Invalid HTTP request received.")
                return
            if self._between_requests:
                self._head = []
            if self._pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

        def on_message_begin(self) -> None:
            """A request begins."""
            self._between_requests = False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            """The head of a request has arrived."""
            if self.parser.should_upgrade() and self._can_give_to_h11():
                raise ValueError("httptools would drop the body")
            super().on_headers_complete()
            self._head, self._pending_bytes = None, 0

        def on_body(self, body: bytes) -> None:
            """A piece of the body has arrived."""
            self._pending_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            """The request has arrived."""
            self._between_requests, self._pending_bytes = True, 0
            super().on_message_complete()

        def _can_give_to_h11(self) -> bool:
            answered = self.cycle is None or self.cycle.response_complete
            return answered and self._head is not None

        def _give_to_h11(self) -> bool:
            """Let h11 go on with this connection, from the head that has just come."""
            if not self._can_give_to_h11() or self._head is None:
                return False
            self.connections.discard(self)
            other = H11Protocol(self.config, self.server_state, self.app_state, self.loop)
            other.connection_made(self.transport)
            self.transport.set_protocol(other)
            other.data_received(b"".join(self._head))
            return True

    return FastProtocol
