"""The messages between the service and a worker: one JSON object a line, over a socket pair.

    service                         worker
    Load ─────────────────────────→        reads the checkpoint, checks itself
         ←───────────────────────── Loaded | LoadFailed
    Warmup ───────────────────────→        maps the shared memory, measures batch sizes
         ←───────────────────────── Ready  | LoadFailed
    Run ──────────────────────────→
         ←───────────────────────── Done | OutOfMemory | EngineFailed (and then the worker exits)

A worker with several streams runs as many batches, of one image each, at the same time and answers
each when it is done, in any order. Pixels and masks lie in shared memory. The messages are JSON and
not pickles: the service must not unpickle what a process that runs other people's weights sends.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

MAX_LINE_BYTES = 1 << 20
"""No message is longer than this."""

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""What a worker sends is checked like any other input."""


class ProtocolError(Exception):
    """The other side sent something that is not a message, or not one that may come now."""


@dataclass(frozen=True, slots=True, config=STRICT)
class Load:
    """Load a checkpoint onto a device and check it."""

    factory: str
    """`module:attribute`, called as `(checkpoint, device=..., threads=...)`; never a user's."""
    checkpoint: str | None
    device: str
    threads: int
    """Threads the engine may use on the CPU."""


@dataclass(frozen=True, slots=True, config=STRICT)
class Loaded:
    """What was loaded, and where."""

    name: str
    sha256: str
    input_size: int
    device: str
    engine: str
    streams: int
    """Single images the engine computes at the same time."""


@dataclass(frozen=True, slots=True, config=STRICT)
class Warmup:
    """The shared memory has its size: map it, then run and measure what will be in use."""

    buffers: int
    max_batch: int
    input_size: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Ready:
    """Everything that will be in use has run and was measured."""

    streams: Annotated[int, Field(ge=1)]
    """Single images that fit and run at the same time; above 1 there is no larger batch."""
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    """Images of the batches that pay, ascending from 1; the last is the largest to send."""
    seconds: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    """What a batch of each of `sizes` takes while all streams are busy."""
    resident_bytes: int
    device_bytes: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Run:
    """Predict the first `images` slots of a buffer."""

    number: int
    buffer: int
    images: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Done:
    """The masks of batch `number` are in its buffer."""

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
class LoadFailed:
    """The load failed for a reason that a person can do something about."""

    detail: str
    traceback: str = ""
    """Where it was raised, for the log; empty when `detail` is enough."""


@dataclass(frozen=True, slots=True, config=STRICT)
class EngineFailed:
    """The engine raised something; the device cannot be trusted any more."""

    detail: str
    traceback: str = ""


Message = Load | Loaded | Warmup | Ready | Run | Done | OutOfMemory | LoadFailed | EngineFailed

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """One line, newline included."""
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    return json.dumps({"kind": type(message).__name__, **values}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line. Raises `ProtocolError`."""
    try:
        values = json.loads(line)
        message: Message = _KINDS[values.pop("kind")](**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"Not a message: {line[:80]!r}") from error
    return message
