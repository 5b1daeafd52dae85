"""One request and its answer, from the first header to the last byte sent: what is known of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from purnet_serve.observability.labels import Stage

SCOPE_KEY = "purnet.exchange"
LEASE_KEY = "purnet.lease"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ClientGoneError(Exception):
    """The client closed its connection, or reads too slowly to be waited for: nobody to answer."""


@dataclass(slots=True)
class Exchange:
    """What the guard learns first and the routes add to; logged and counted when it ends.

    Times are seconds on the event loop's clock. Nothing in here identifies a person or a picture.
    """

    request_id: str
    method: str
    path: str
    arrived: float
    deadline: float
    stage: Stage = Stage.RECEIVE
    status: int = 0
    """Status sent; 0 while nothing was."""
    gone: bool = False
    """Whether the client went away first; `stage` says during what."""
    over: bool = False
    """Whether it was counted and logged."""
    code: str | None = None
    """Code of the error that was answered."""
    body_bytes: int = 0
    answer_bytes: int = 0
    width: int = 0
    height: int = 0
    batch_size: int = 0
    timings: dict[Stage, float] = field(default_factory=dict)


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange:
    """The exchange that the guard put into an ASGI scope."""
    exchange = scope[SCOPE_KEY]
    if not isinstance(exchange, Exchange):
        raise TypeError(f"{SCOPE_KEY} in the scope is {type(exchange).__name__}")
    return exchange


def request_id(offered: str | None) -> str:
    """The client's own id when it is short and plain, thus safe in logs; else a new one."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex
