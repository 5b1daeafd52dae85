"""What is counted of a step."""

from __future__ import annotations

import pytest
from benchmarks.peers.generator import Outcome, Request
from benchmarks.peers.results import counted, percentile, sent_late_p99_ms


def request(due_s: float, answered_s: float, status: str = "200", late_s: float = 0.0) -> Request:
    return Request(due_s, answered_s, late_s, status)


def test_only_requests_due_after_the_ramp_are_counted():
    requests = [
        request(0.5, 1.5),  # due in the ramp, answered in the window
        request(1.0, 1.25),
        request(2.5, 3.5),  # answered after the window
        request(2.9, 3.0, "503"),
        request(3.0, 3.1),  # due after the window
    ]
    statuses, latencies_ms, came_ms = counted(requests, ramp_s=1.0, seconds=2.0)
    assert statuses == {"200": 2, "503": 1}
    assert latencies_ms == [250.0, 1000.0]
    # A full server gives no more masks in the window than it can, whatever is answered after it.
    assert came_ms == [250.0, 1000.0]
    assert counted(requests[:1], ramp_s=1.0, seconds=2.0) == ({}, [], [1000.0])


def test_latencies_are_of_masks_alone_and_ascend():
    requests = [request(1, 3), request(1, 1.5, "429"), request(1, 2)]
    assert counted(requests, 0.0, 10.0)[1] == [1000.0, 2000.0]


@pytest.mark.parametrize(
    ("percent", "value"),
    [(0, 1.0), (50, 50.0), (95, 95.0), (99, 99.0), (99.5, 100.0), (100, 100.0)],
)
def test_percentiles_by_nearest_rank(percent, value):
    assert percentile([float(number) for number in range(1, 101)], percent) == value


def test_there_is_no_percentile_of_nothing():
    assert percentile([], 50) is None


def test_lateness_of_the_generator():
    outcome = Outcome([request(0, 1, late_s=late_s) for late_s in (0.003, 0.0, 0.002)], cpu_s=0.1)
    assert sent_late_p99_ms(outcome) == 3.0
    assert sent_late_p99_ms(Outcome([], 0.0)) == 0.0
