"""What a device is given after it ran out of memory, and when it is given more again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purnet_serve.inference.limits import RECOVERY_BATCHES, DeviceLimits


def in_use(limits: DeviceLimits) -> tuple[int, int]:
    return limits.max_batch, limits.streams


@pytest.mark.parametrize(
    ("images", "running", "after"),
    [(8, 1, (4, 4)), (3, 2, (1, 4)), (1, 4, (16, 2)), (1, 3, (16, 1)), (1, 1, (16, 1))],
)
def test_half_of_what_did_not_fit_is_tried(images, running, after):
    limits = DeviceLimits(16, streams=4)
    limits.lower(images=images, running=running)
    assert in_use(limits) == after


def test_more_is_allowed_after_so_many_batches_that_use_all_of_it():
    limits = DeviceLimits(16, streams=4)
    limits.lower(images=8, running=1)
    limits.lower(images=1, running=4)
    for _ in range(RECOVERY_BATCHES - 1):
        assert not limits.recover(images=4, running=2)
    for images, running in [(3, 2), (4, 1)]:
        assert not limits.recover(images=images, running=running)
    assert in_use(limits) == (4, 2)
    assert limits.recover(images=4, running=2)
    assert in_use(limits) == (5, 3)


def test_out_of_memory_starts_the_count_anew():
    limits = DeviceLimits(16, streams=1)
    limits.lower(images=16, running=1)
    for _ in range(RECOVERY_BATCHES - 1):
        limits.recover(images=8, running=1)
    limits.lower(images=8, running=1)
    assert not limits.recover(images=4, running=1)
    assert in_use(limits) == (4, 1)


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(1, 4), st.booleans()), max_size=400),
)
def test_limits_stay_between_one_and_what_is_possible(batches):
    limits = DeviceLimits(16, streams=4)
    for images, running, fits in batches:
        before = in_use(limits)
        if fits:
            assert limits.recover(images=images, running=running) == (in_use(limits) != before)
        else:
            limits.lower(images=images, running=running)
        assert 1 <= limits.max_batch <= 16
        assert 1 <= limits.streams <= 4
