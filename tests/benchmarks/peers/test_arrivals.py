"""Plans of load."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from benchmarks.peers.arrivals import order, poisson


def test_arrivals_are_poisson():
    plan = poisson(50, 200, 8, "seed")
    gaps = [b.due_s - a.due_s for a, b in pairwise(plan)]
    assert len(plan) == pytest.approx(50 * 200, rel=0.05)
    # Of exponential gaps the deviation is the mean; of regular ones it is 0.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    assert min(gaps) > 0
    assert plan[-1].due_s < 200


def test_all_photos_are_sent_alike():
    plan = poisson(50, 200, 8, "seed")
    counts = [sum(arrival.photo == photo for arrival in plan) for photo in range(8)]
    assert min(counts) > 0.8 * len(plan) / 8
    assert set(order(8, "seed")) == set(range(8))


def test_a_seed_gives_the_same_plan_to_every_peer():
    assert poisson(50, 2, 8, "small 0") == poisson(50, 2, 8, "small 0")
    assert poisson(50, 2, 8, "small 0") != poisson(50, 2, 8, "small 1")
    assert order(8, "small 0") == order(8, "small 0") != order(8, "small 1")
