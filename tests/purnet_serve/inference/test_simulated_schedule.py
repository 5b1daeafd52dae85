"""Whether accepted requests are in time and the capacity is used, on a simulated service."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from simulated_service import Seen, SimulatedService, poisson

from purnet_serve.inference.schedule import ServiceRate

IMAGE_S = 1 / 15
CAPACITY = 30.0
"""Images a second of two streams."""


def known() -> ServiceRate:
    """What a warm-up says of that service."""
    return ServiceRate(1 / CAPACITY, IMAGE_S)


def steady(_: float) -> float:
    return IMAGE_S


def varying(seed: int) -> Callable[[float], float]:
    """Seconds an image that differ by a third and are `IMAGE_S` on average."""
    chance = random.Random(seed)
    return lambda _: IMAGE_S * chance.lognormvariate(-0.045, 0.3)


def good_a_second(seen: list[Seen], start_s: float, end_s: float) -> float:
    """Answers in time a second, to requests that came between two times."""
    return sum(one.good for one in seen if start_s <= one.arrived_s < end_s) / (end_s - start_s)


@pytest.mark.parametrize("factor", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("allowed_s", [1.0, 5.0])
def test_above_capacity_nearly_all_of_it_is_good_answers_and_no_accepted_one_is_late(
    factor, allowed_s
):
    service = SimulatedService(steady, rate=known())
    seen = service.run(poisson(factor * CAPACITY, 40, allowed_s, seed=1))
    assert good_a_second(seen, 2, 40) >= 0.95 * CAPACITY
    assert not any(one.late for one in seen)


@pytest.mark.parametrize("seed", range(5))
def test_when_images_differ_at_most_one_in_a_hundred_is_late(seed):
    service = SimulatedService(varying(seed), rate=known())
    seen = service.run(poisson(3 * CAPACITY, 60, 1.0, seed=seed))
    assert good_a_second(seen, 2, 60) >= 0.95 * CAPACITY
    accepted = [one for one in seen if not one.refused]
    assert sum(one.late for one in accepted) <= 0.01 * len(accepted)


def test_below_capacity_hardly_anybody_is_refused():
    service = SimulatedService(varying(2), rate=known())
    seen = service.run(poisson(0.7 * CAPACITY, 60, 1.0, seed=2))
    assert sum(one.refused for one in seen) <= 0.01 * len(seen)
    assert not any(one.late for one in seen)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_sixty_four_requests_of_30_s_leave_half_of_the_service_to_those_of_1_s(factor):
    short = poisson(factor * CAPACITY, 40, 1.0, seed=5)
    service = SimulatedService(steady, rate=known())
    seen = service.run(sorted([*short, *[(5.0, 30.0)] * 64]))
    assert all(one.good for one in seen if one.allowed_s == 30.0)
    quick = [one for one in seen if one.allowed_s == 1.0]
    assert not any(one.late for one in quick)
    for second in range(2, 40, 2):
        offered = sum(second <= one.arrived_s < second + 2 for one in quick) / 2
        assert good_a_second(quick, second, second + 2) >= min(offered, 0.8 * CAPACITY / 2)


def test_a_service_that_becomes_slow_and_fast_again_is_learnt():
    service = SimulatedService(lambda now: 0.5 if 20 <= now < 40 else IMAGE_S, rate=known())
    seen = service.run(poisson(2 * CAPACITY, 60, 1.0, seed=7))
    assert good_a_second(seen, 2, 18) >= 0.95 * CAPACITY
    assert good_a_second(seen, 25, 39) >= 0.7 * 4, "4 a second is all it can do"
    assert good_a_second(seen, 42, 60) >= 0.95 * CAPACITY
    late = [one.arrived_s for one in seen if one.late]
    assert all(18 < arrived_s < 25 for arrived_s in late), "only those accepted before it shows"
    assert len(late) <= 1.5 * CAPACITY


def test_of_an_unknown_service_no_more_than_the_first_second_is_late():
    service = SimulatedService(steady)
    seen = service.run(poisson(3 * CAPACITY, 30, 1.0, seed=3))
    assert all(one.arrived_s < 1 for one in seen if one.late)
    assert good_a_second(seen, 2, 30) >= 0.95 * CAPACITY


def test_after_a_worker_was_replaced_the_rate_is_what_it_was():
    service = SimulatedService(steady, rate=known())
    arrivals = poisson(3 * CAPACITY, 40, 1.0, seed=4)

    def image_s(now: float) -> float:
        if 20 <= now < 20.1:
            service.stopped_until_s = 22.0
        return IMAGE_S

    service.image_s = image_s
    seen = service.run(arrivals)
    late = [one for one in seen if one.late]
    assert late, "those that were accepted when the worker ended"
    assert all(18 < one.arrived_s < 24 for one in late)
    assert len(late) <= 1.5 * CAPACITY
    assert sum(one.dropped for one in late) > 0.5 * len(late), "no work is done for them"
    assert good_a_second(seen, 26, 40) >= 0.95 * CAPACITY
