"""The values that labels of metrics can have: closed sets."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """The stages of a mask request, in order: what is timed, and where a client left."""

    RECEIVE = "receive"
    DECODE = "decode"
    QUEUE = "queue"
    """A client that left while its request waited for a slot, or its image was queued or on the
    device, is counted here."""
    INFER = "infer"
    ENCODE = "encode"
    SEND = "send"


class DispatchReason(StrEnum):
    """Why a batch left the queue when it did."""

    FULL = "full"
    NOTHING_UPSTREAM = "nothing_upstream"
    WAITED = "waited"


class TicketLocation(StrEnum):
    """Where an image was when its client stopped waiting."""

    SLOT = "slot"
    """It was not decoded yet: its request waited for a slot of the pipeline, and had no ticket."""
    QUEUE = "queue"
    DEVICE = "device"


class Outcome(StrEnum):
    """How the execution of one image ended; `mask`, `non_finite` and `failed` are answers."""

    MASK = "mask"
    NON_FINITE = "non_finite"
    FAILED = "failed"
    """A worker ended while it ran this image, for the second time."""
    ABANDONED = "abandoned"
    """Its client had stopped waiting: it left, or its deadline passed."""
    RETRIED = "retried"
    """The worker ended or ran out of memory; the image is queued again."""


class FailureKind(StrEnum):
    """What can go wrong with a worker, a batch or an image."""

    EXCEPTION = "exception"
    """The engine raised: a device error, or a bug."""
    EXIT = "exit"
    SIGNAL = "signal"
    HANG = "hang"
    PIPE = "pipe"
    """The worker closed its pipe and went on running."""
    PROTOCOL = "protocol"
    REFUSED = "refused"
    """The model could not be loaded."""
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"


class CheckResult(StrEnum):
    """How a health check or a reload ended."""

    OK = "ok"
    FAILED = "failed"
