from __future__ import annotations

import pytest
from benchmarks.scaling.plan import INSTANCE, fullness, plan, processor_s_per_million
from benchmarks.scaling.results import Stages

PHOTO = Stages("1920 x 1080", 3.0, 57.0, 40.0, 900_000, 100_000)


def test_a_rate_takes_rate_times_time():
    found = plan(1_000, PHOTO, 0.5)
    assert found.processors == pytest.approx(100)
    assert found.instances == 100 / 0.5 // INSTANCE + 1
    assert (found.bottleneck, found.share) == ("codec", pytest.approx(0.57))
    assert found.gigabits == pytest.approx(8.0)
    assert found.pixel_gigabits == pytest.approx(3.2768)
    assert processor_s_per_million(PHOTO) == pytest.approx(100_000)


def test_ten_times_the_photos_take_ten_times_the_processors():
    assert plan(1_000, PHOTO, 0.7).processors == pytest.approx(
        10 * plan(100, PHOTO, 0.7).processors
    )


def test_an_instance_of_more_processors_may_be_fuller():
    assert fullness(1) < fullness(4) < fullness(16) < 1
