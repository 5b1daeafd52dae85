"""Pixels in, masks out, through memory that the service and one worker process share.

The segment is an anonymous file: the service creates it, the worker inherits the descriptor, and
it has no name anywhere. So no crash leaves anything behind, and Docker's 64 MB of /dev/shm does not
limit it (the container's memory limit does). Every worker process has a segment of its own: one
that was replaced but still runs writes into memory that nobody reads.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile

import numpy as np

from purnet_serve.inference.backend import Mask, Pixels


def create() -> int:
    """Descriptor of a new, empty segment without a name; the caller closes it."""
    if sys.platform == "linux":
        return os.memfd_create("purnet-batches", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def reserve(fd: int, *, buffers: int, max_batch: int, input_size: int) -> None:
    """Give the segment its size, and allocate its memory now rather than at first use.

    Raises `MemoryError`, with what to set, where the machine has no room for it: touching a page
    that cannot be allocated would kill this process instead.
    """
    size = _size(buffers, max_batch, input_size)
    try:
        if sys.platform == "linux":
            os.posix_fallocate(fd, 0, size)
        else:
            os.truncate(fd, size)
    except OSError as error:
        raise MemoryError(
            f"No room for {size >> 20} MiB of memory shared with a worker ({error.strerror}): "
            "raise the memory limit or lower PURNET_MAX_BATCH."
        ) from error


class SharedBatches:
    """A mapping of a segment: `buffers` batches of up to `max_batch` images each.

    `pixels` is (buffers, max_batch, S, S, 3) and `masks` (buffers, max_batch, S, S), both uint8.
    """

    def __init__(self, fd: int, *, buffers: int, max_batch: int, input_size: int) -> None:
        mapping = self._mapping = mmap.mmap(fd, _size(buffers, max_batch, input_size))
        shape = (buffers, max_batch, input_size, input_size)
        pixel_bytes = 3 * buffers * max_batch * input_size**2
        self.buffers = buffers
        self.pixels: Pixels = np.frombuffer(mapping, np.uint8, pixel_bytes).reshape(*shape, 3)
        self.masks: Mask = np.frombuffer(mapping, np.uint8, offset=pixel_bytes).reshape(shape)

    def put(self, buffer: int, slot: int, pixels: Pixels) -> None:
        """Copy (S, S, 3) uint8 pixels to their place.

        NumPy would give up the interpreter's lock for the 20 µs that this takes, and the event loop
        would wait for whichever thread has taken it: milliseconds under load.
        """
        size = pixels.nbytes
        start = (buffer * self.masks.shape[1] + slot) * size
        with memoryview(self._mapping) as shared:
            shared[start : start + size] = pixels.data.cast("B")

    def close(self) -> None:
        """Unmap now: left to the garbage collector, old segments would pile up until it runs."""
        self.pixels = self.masks = np.empty(0, np.uint8)
        # An array that is still in use keeps the mapping for as long as it lives.
        with contextlib.suppress(BufferError):
            self._mapping.close()


def copy_mask(mask: Mask) -> Mask:
    """A read-only copy of one mask, (S, S) uint8; like `put`, it keeps the interpreter's lock."""
    return np.frombuffer(mask.tobytes(), np.uint8).reshape(mask.shape)


def _size(buffers: int, max_batch: int, input_size: int) -> int:
    return 4 * buffers * max_batch * input_size**2
