"""How much one device is given at once: less after it ran out of memory, more again later."""

from __future__ import annotations

RECOVERY_BATCHES = 100
"""Full batches after which one image or stream more is tried again after out of memory."""


class DeviceLimits:
    """The largest batch and the streams that a device may use now: at first all there are."""

    def __init__(self, max_batch: int, streams: int) -> None:
        self.max_batch = max_batch
        """Images of the largest batch to send; halved after out of memory."""
        self.streams = streams
        """Streams in use; halved after out of memory."""
        self._possible = (max_batch, streams)
        self._full_batches = 0
        """Full batches since one of the two last changed."""

    def lower(self, *, images: int, running: int) -> None:
        """Half of what did not fit may fit: smaller batches, or fewer streams.

        `images` is the size of the batch that failed, `running` the batches that ran at that time,
        this one included.
        """
        if images > 1:
            self._set(min(self.max_batch, images // 2), self.streams)
        else:
            self._set(self.max_batch, max(1, min(self.streams, running // 2)))

    def recover(self, *, images: int, running: int) -> bool:
        """Count a batch that went well, and allow a little more after `RECOVERY_BATCHES`.

        Out of memory may have been another process's doing. Only batches that use all that is
        allowed count. Returns whether more is allowed now.
        """
        more_images, more_streams = (
            now < possible
            for now, possible in zip((self.max_batch, self.streams), self._possible, strict=True)
        )
        full = images >= self.max_batch and running >= self.streams
        if not full or not (more_images or more_streams):
            return False
        self._full_batches += 1
        if self._full_batches < RECOVERY_BATCHES:
            return False
        self._set(self.max_batch + more_images, self.streams + more_streams)
        return True

    def _set(self, max_batch: int, streams: int) -> None:
        self.max_batch, self.streams = max_batch, streams
        self._full_batches = 0
