from __future__ import annotations

import random
import statistics

import pytest
from benchmarks.scaling.queueing import mean_wait_s, most_full, simulate, waits_probability

CONSTANT = [0.1]
_chance = random.Random(3)
EXPONENTIAL = [_chance.expovariate(10) for _ in range(20_000)]
PHOTOS = [0.05] * 7 + [0.4]


def test_one_place_waits_as_often_as_it_is_busy():
    assert waits_probability(1, 0.7) == pytest.approx(0.7)


def test_erlangs_table():
    # Two places, one erlang: 1/3; ten places, eight erlangs: .409.
    assert waits_probability(2, 1.0) == pytest.approx(1 / 3)
    assert waits_probability(10, 8.0) == pytest.approx(0.409, abs=5e-4)


@pytest.mark.parametrize("busy", [1.0, 1.5, -0.1])
def test_a_queue_that_grows_without_end_has_no_mean(busy):
    with pytest.raises(ValueError, match="no queue is stable"):
        waits_probability(1, busy)


def test_one_place_and_constant_times_wait_half_as_long_as_exponential_ones():
    # Pollaczek and Khinchine: rho / (2 (1 - rho)) times the service time.
    assert mean_wait_s(8, 1, CONSTANT) == pytest.approx(0.8 / (2 * 0.2) * 0.1)
    assert mean_wait_s(8, 1, EXPONENTIAL) == pytest.approx(0.8 / 0.2 * 0.1, rel=0.1)


@pytest.mark.parametrize("places", [1, 4, 8])
@pytest.mark.parametrize("service_s", [CONSTANT, EXPONENTIAL, PHOTOS])
def test_formula_and_simulation_agree(places, service_s):
    mean_s = statistics.fmean(service_s)
    rate = 0.8 * places / mean_s
    formula_s = mean_s + mean_wait_s(rate, places, service_s)
    assert simulate(rate, places, service_s).mean_s == pytest.approx(formula_s, rel=0.08)


def test_an_idle_service_takes_what_one_photo_takes():
    predicted = simulate(0.001, 2, CONSTANT)
    assert predicted.p99_s == pytest.approx(0.1)
    assert predicted.refused == 0


def test_above_capacity_the_rest_is_refused_and_nobody_is_late():
    predicted = simulate(30, 1, CONSTANT, target_s=5)
    assert predicted.refused == pytest.approx(2 / 3, abs=0.01)
    assert 4 < predicted.p50_s <= predicted.p99_s <= 5


def test_many_places_may_be_fuller_than_few():
    few, many = (most_full(places, PHOTOS, 8.0) for places in (1, 16))
    assert 0 < few < many < 1
    rate = many * 16 / statistics.fmean(PHOTOS)
    assert simulate(rate, 16, PHOTOS).p99_s <= 8 * statistics.fmean(PHOTOS)
