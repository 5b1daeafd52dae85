"""What crosses between a server and a model replica: tuples of plain values, with a version.

    server                              replica
    (PROTOCOL, seconds left, pixels) ─→
         ←───────────────────────────── MaskMessage | ErrorMessage | VersionMessage

Pixels and masks are bytes. Times are seconds left, never moments: clocks of machines differ. Errors
of ours are values, because an exception that crosses comes out as one of Ray's. Both sides may run
other versions of this package while one of them is renewed: every message begins with its kind and
`PROTOCOL`, and a server that is answered by another version says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from purnet_serve.errors import (
    DeadlineError,
    DrainingError,
    InternalError,
    NonFiniteError,
    NotReadyError,
    ServiceError,
    WorkerError,
)
from purnet_serve.inference.backend import ModelInfo, Pixels, Prediction, Throughput

PROTOCOL = 1
"""Raised when a message changes so that the version before would not understand it."""

MaskMessage = tuple[str, int, bytes, float, float, int, tuple[str, str, int, str, str]]
"""("mask", PROTOCOL, mask, queue_s, infer_s, batch_size, fields of `ModelInfo`)."""
ErrorMessage = tuple[str, int, str, str]
"""("error", PROTOCOL, code, detail)."""
VersionMessage = tuple[str, int]
"""("version", PROTOCOL of the replica): it did not understand the request."""
Message = MaskMessage | ErrorMessage | VersionMessage

_ERRORS: dict[str, type[ServiceError]] = {
    kind.code: kind
    for kind in (WorkerError, NonFiniteError, NotReadyError, DrainingError, DeadlineError)
}
"""Errors that a replica answers and that reach the client as they are."""


class OtherVersionError(Exception):
    """The other side speaks another `PROTOCOL`, or the same with fields that this side lacks."""

    def __init__(self, theirs: object) -> None:
        said = f"The model replica speaks protocol {theirs}, this server {PROTOCOL}."
        if theirs == PROTOCOL:
            said = "The model replica is of another version, which this server cannot read."
        super().__init__(said)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica says of itself."""

    deployed: str | None
    """Digest of what `purnet serve` deployed; None when a config file did."""
    model: ModelInfo | None
    throughput: Throughput | None
    reason: str | None
    """Why it cannot predict; None when it can."""


def pack_prediction(prediction: Prediction) -> MaskMessage:
    """A prediction, for the way to the server."""
    model = prediction.model
    return (
        "mask",
        PROTOCOL,
        prediction.mask.tobytes(),
        prediction.queue_s,
        prediction.infer_s,
        prediction.batch_size,
        (model.name, model.sha256, model.input_size, model.device, model.engine),
    )


def pack_error(error: ServiceError) -> ErrorMessage:
    """A service error, for the way to the server."""
    return ("error", PROTOCOL, error.code, error.detail)


def unpack_answer(message: Message) -> Prediction | ServiceError:
    """The answer in a message. Raises `OtherVersionError`, or `ValueError` for a broken one."""
    kind, protocol = message[:2]
    if protocol != PROTOCOL:
        raise OtherVersionError(protocol)
    if kind == "error" and len(message) == 4:
        code, detail = message[2:]
        return _ERRORS.get(str(code), InternalError)(str(detail))
    if kind != "mask" or len(message) != 7:
        raise ValueError(f"not an answer: {kind!r} of {len(message)} values")
    mask, queue_s, infer_s, batch_size, model = message[2:]
    info = ModelInfo(*model)
    size = info.input_size
    return Prediction(
        # A copy: an array over received bytes could not be written to.
        mask=np.frombuffer(mask, np.uint8).reshape(size, size).copy(),
        model=info,
        queue_s=queue_s,
        infer_s=infer_s,
        batch_size=batch_size,
    )


def unpack_pixels(pixels: bytes) -> Pixels:
    """(S, S, 3) uint8 pixels of their bytes. Raises `ValueError` when no S fits."""
    size = math.isqrt(len(pixels) // 3)
    return np.frombuffer(pixels, np.uint8).reshape(size, size, 3)


def pack_state(state: ReplicaState) -> dict[str, Any]:
    """What a replica says of itself, as plain values."""
    return {"protocol": PROTOCOL, **asdict(state)}


def unpack_state(values: Mapping[str, Any]) -> ReplicaState:
    """Raises `OtherVersionError` for a replica of another version."""
    protocol = values.get("protocol")
    if protocol != PROTOCOL:
        raise OtherVersionError(protocol)
    try:
        model, throughput = values["model"], values["throughput"]
        return ReplicaState(
            deployed=values["deployed"],
            model=None if model is None else ModelInfo(**model),
            throughput=None if throughput is None else Throughput(**throughput),
            reason=values["reason"],
        )
    except (KeyError, TypeError) as error:
        raise OtherVersionError(protocol) from error
