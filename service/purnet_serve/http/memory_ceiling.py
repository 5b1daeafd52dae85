"""How much memory the API process can come to hold, whatever strangers send: the sum of its limits.

Tested against a running service; the operating guide and `purnet config` quote it.
"""

from __future__ import annotations

from purnet_serve.http.context import pool_threads
from purnet_serve.images.codec import BYTES_PER_PIXEL, MASK_BYTES_PER_PIXEL
from purnet_serve.settings import MIB, Settings

BASE_BYTES = 160 * MIB
"""Interpreter, libraries and metrics of an idle process, with a little room."""

BYTES_PER_REQUEST = MIB
"""Pixels and mask at the model's size, and what the server buffers of a connection."""


def memory_ceiling_bytes(settings: Settings) -> int:
    """Bytes the API process holds at most; the workers come on top."""
    largest = settings.max_pixels * (max(BYTES_PER_PIXEL.values()) + MASK_BYTES_PER_PIXEL)
    return (
        BASE_BYTES
        + settings.max_bytes_in_flight
        + settings.max_answer_bytes
        + settings.max_requests_in_flight * BYTES_PER_REQUEST
        + max(settings.max_pixel_bytes, largest)
        + sum(pool_threads(settings)) * settings.max_body_bytes
    )
