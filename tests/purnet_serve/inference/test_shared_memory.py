from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from purnet_serve.inference import shared_memory as shared

SIZE = {"buffers": 2, "max_batch": 3, "input_size": 8}


@pytest.fixture
def segment():
    fd = shared.create()
    yield fd
    os.close(fd)


def test_two_mappings_see_the_same_pixels_and_masks(segment):
    shared.reserve(segment, **SIZE)
    here, there = shared.SharedBatches(segment, **SIZE), shared.SharedBatches(segment, **SIZE)
    assert here.pixels.shape == (2, 3, 8, 8, 3)
    assert here.masks.shape == (2, 3, 8, 8)
    here.pixels[1, 2] = 7
    there.masks[0, 1] = 9
    assert (there.pixels[1, 2] == 7).all()
    assert (here.masks[0, 1] == 9).all()
    assert there.pixels.sum() == 7 * 8 * 8 * 3, "pixels and masks do not overlap"
    here.close()
    there.close()


def test_pixels_are_put_in_their_place_and_masks_copied_from_theirs(segment):
    shared.reserve(segment, **SIZE)
    here, there = shared.SharedBatches(segment, **SIZE), shared.SharedBatches(segment, **SIZE)
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    here.put(1, 2, pixels)
    assert np.array_equal(there.pixels[1, 2], pixels)
    assert there.pixels.sum() == pixels.sum(), "nothing else was written"
    there.masks[1, 0] = 9
    mask = shared.copy_mask(here.masks[1, 0])
    there.masks[1, 0] = 3
    assert (mask.shape, mask.dtype) == ((8, 8), np.uint8)
    assert (mask == 9).all()
    here.close()
    there.close()


def test_a_segment_has_no_name_and_is_gone_when_it_is_closed():
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    fd = shared.create()
    shared.reserve(fd, **SIZE)
    batches = shared.SharedBatches(fd, **SIZE)
    os.close(fd)
    assert "purnet-batches (deleted)" in Path("/proc/self/maps").read_text()
    batches.close()
    assert len(list(descriptors.iterdir())) == before


def test_a_mask_somebody_still_holds_outlives_the_mapping(segment):
    shared.reserve(segment, **SIZE)
    batches = shared.SharedBatches(segment, **SIZE)
    held = batches.masks[0, 0]
    batches.close()
    held[:] = 5
    assert np.all(held == 5)


def test_no_room_says_what_to_set(segment, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match=r"No space left on device.*PURNET_MAX_BATCH"):
        shared.reserve(segment, **SIZE)


def test_the_default_batch_fits_a_container():
    """Docker gives 64 MB of /dev/shm by default; this would fit even there."""
    assert shared._size(buffers=2, max_batch=16, input_size=320) < 64_000_000
