"""What the service and a worker say to each other: one JSON object a line, over a socket pair.

    service                         worker
    Load ─────────────────────────→        reads the checkpoint, checks itself
         ←───────────────────────── Loaded | Refused
    Attach ───────────────────────→        maps the shared memory, warms up
         ←───────────────────────── Ready  | Refused
    Run ──────────────────────────→
         ←───────────────────────── Done | OutOfMemory | Fault (and then the worker exits)

Pixels and masks never pass here; they lie in shared memory. JSON, because the service must not
unpickle what a process that runs foreign weights sends.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

MAX_LINE_BYTES = 1 << 20
"""A longer line is not one of ours."""


STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""What a worker says is checked like any other input: a wrong type stops at this door."""


class ProtocolError(Exception):
    """The other side said something that has no meaning here."""


@dataclass(frozen=True, slots=True, config=STRICT)
class Load:
    """Load a checkpoint onto a device and check it."""

    factory: str
    """`module:attribute`, called as `(checkpoint, device=...)`; chosen by code, never by users."""
    checkpoint: str | None
    device: str


@dataclass(frozen=True, slots=True, config=STRICT)
class Loaded:
    """What was loaded, and where."""

    name: str
    sha256: str
    input_size: int
    device: str
    engine: str


@dataclass(frozen=True, slots=True, config=STRICT)
class Attach:
    """The shared memory now has its size: map it and warm up every batch size up to `max_batch`."""

    banks: int
    max_batch: int
    input_size: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Ready:
    """Every batch size up to `max_batch` has run; the slowest took `slowest_s` seconds."""

    max_batch: int
    slowest_s: float
    resident_bytes: int
    device_bytes: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Run:
    """Predict the first `images` slots of a bank."""

    number: int
    bank: int
    images: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Done:
    """The masks of batch `number` are in its bank."""

    number: int
    finite: list[bool]
    infer_s: float
    resident_bytes: int
    device_bytes: int


@dataclass(frozen=True, slots=True, config=STRICT)
class OutOfMemory:
    """The device has no room for batch `number`; the worker goes on."""

    number: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Refused:
    """The load failed for a reason that a person can do something about."""

    detail: str
    trace: str = ""
    """Where it was raised, for the log; empty when `detail` says it all."""


@dataclass(frozen=True, slots=True, config=STRICT)
class Fault:
    """The engine raised something; the device cannot be trusted any more."""

    detail: str
    trace: str = ""


Message = Load | Loaded | Attach | Ready | Run | Done | OutOfMemory | Refused | Fault

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Load, Loaded, Attach, Ready, Run, Done, OutOfMemory, Refused, Fault)
}


def encode(message: Message) -> bytes:
    """One line, newline included."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line. Raises `ProtocolError`."""
    try:
        fields = json.loads(line)
        message: Message = _KINDS[fields.pop("kind")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"Not a message: {line[:80]!r}") from error
    return message
