"""Pixels in, masks out, through memory that two processes share.

The segment is an anonymous file: the parent creates it, the worker inherits the descriptor, and no
name for it exists anywhere. So no exit, however violent, leaves anything behind, and Docker's 64 MB
of /dev/shm does not bound it (the container's memory limit does). Every incarnation of a worker has
a segment of its own: one that was replaced and wakes up again writes into memory nobody reads.
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
    """Descriptor of a new, empty, nameless segment; the caller closes it."""
    if sys.platform == "linux":
        return os.memfd_create("purnet-batches", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def reserve(fd: int, *, banks: int, max_batch: int, input_size: int) -> None:
    """Give the segment its size, and its memory now rather than at first touch.

    Raises `MemoryError`, with what to set, where the machine has no room for it: touching a page
    that cannot be had would end this process instead.
    """
    size = _size(banks, max_batch, input_size)
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
    """A mapping of a segment: `banks` batches of up to `max_batch` images each.

    `pixels` is (banks, max_batch, S, S, 3) and `masks` (banks, max_batch, S, S), both uint8.
    """

    def __init__(self, fd: int, *, banks: int, max_batch: int, input_size: int) -> None:
        mapping = self._mapping = mmap.mmap(fd, _size(banks, max_batch, input_size))
        cells = (banks, max_batch, input_size, input_size)
        pixel_bytes = 3 * banks * max_batch * input_size**2
        self.banks = banks
        self.max_batch = max_batch
        self.pixels: Pixels = np.frombuffer(mapping, np.uint8, pixel_bytes).reshape(*cells, 3)
        self.masks: Mask = np.frombuffer(mapping, np.uint8, offset=pixel_bytes).reshape(cells)

    def close(self) -> None:
        """Unmap now. Left to the garbage collector, dead segments would pile up until it comes."""
        self.pixels = self.masks = np.empty(0, np.uint8)
        # An array that somebody still looks at keeps the mapping for as long as it lives.
        with contextlib.suppress(BufferError):
            self._mapping.close()


def _size(banks: int, max_batch: int, input_size: int) -> int:
    return 4 * banks * max_batch * input_size**2
