"""Who is accepted, in which order, and what is learnt, one call at a time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purnet_serve.inference.schedule import (
    MAX_MARGIN,
    MIN_TARGET_LATENCIES,
    Schedule,
    ScheduledRequest,
    ServiceRate,
    TooLateError,
)


def exact(latency_s: float = 1.0, interval_s: float = 1.0, target_s: float = 100.0) -> Schedule:
    """One that takes what it is told for exact."""
    schedule = Schedule(target_s)
    schedule.rate = ServiceRate(interval_s, latency_s, margin=1.0)
    schedule.slots = 1
    return schedule


def accept(schedule: Schedule, due_s: float, now: float = 0.0) -> ScheduledRequest:
    scheduled = schedule.accept(now, due_s, due_s)
    schedule.mark_ready(now, scheduled)
    return scheduled


def order(schedule: Schedule) -> list[ScheduledRequest]:
    """All that wait, one after the other through the pipeline."""
    found = []
    while (scheduled := schedule.start_next(0.0)) is not None:
        found.append(scheduled)
        schedule.end(0.0, scheduled, answered=False)
    return found


# --- order


def test_the_earliest_due_comes_first_and_the_first_among_equals():
    schedule = exact()
    late, early, same = accept(schedule, 50), accept(schedule, 20), accept(schedule, 20)
    middle = accept(schedule, 30)
    assert order(schedule) == [early, same, middle, late]


def test_one_that_is_not_ready_lets_others_pass_and_keeps_its_place():
    schedule = exact()
    slow = schedule.accept(0.0, 10, 10)
    ready = accept(schedule, 20)
    assert schedule.start_next(0.0) is ready
    third = accept(schedule, 15)
    assert schedule.ahead == 2
    schedule.mark_ready(1.0, slow)
    assert schedule.ahead == 3
    schedule.end(1.0, ready, answered=False)
    assert schedule.start_next(1.0) is slow
    schedule.end(1.0, slow, answered=False)
    assert schedule.start_next(1.0) is third


def test_no_more_begin_than_there_are_slots():
    schedule = exact()
    schedule.slots = 2
    requests = [accept(schedule, 50) for _ in range(3)]
    assert [schedule.start_next(0.0) for _ in range(3)] == [requests[0], requests[1], None]
    schedule.end(0.0, requests[0], answered=False)
    assert schedule.start_next(0.0) is requests[2]


# --- who is accepted


@pytest.mark.parametrize(
    ("accepted", "new", "estimate_s"),
    [
        ([], 0.1, None),  # an idle service tries everything
        ([10], 2, None),
        ([10], 1.9, None),  # before the other: 1 s
        ([10], 0.9, 1.0),
        ([2], 3, None),
        ([2], 2, None),  # behind the other: 2 s
        ([1.5], 1.4, 2.0),  # the other would be late, so it could only come behind that
        ([1, 2, 3], 3.9, 4.0),
        ([1, 2, 3], 4, None),
        ([2, 4], 1.9, None),  # they are at 2 and 3 s then
        ([2, 2.5], 1.9, 3.0),
    ],
)
def test_a_request_is_accepted_if_it_and_all_others_stay_in_time(accepted, new, estimate_s):
    schedule = exact()
    for due_s in accepted:
        accept(schedule, due_s)
    if estimate_s is None:
        accept(schedule, new)
        return
    with pytest.raises(TooLateError) as refused:
        accept(schedule, new)
    assert refused.value.estimate_s == pytest.approx(estimate_s)
    assert refused.value.allowed_s == new
    assert schedule.waiting == len(accepted)


@given(dues=st.lists(st.integers(1, 12).map(lambda half: half / 2), max_size=14))
def test_what_is_accepted_is_what_a_single_server_can_do_in_time(dues):
    """Against a server of 1 s an image that takes the earliest due first, tried anew each time."""
    schedule, accepted = exact(), []
    for due_s in dues:
        tried = sorted([*accepted, due_s])
        fits = all(number <= one for number, one in enumerate(tried, start=1))
        try:
            accept(schedule, due_s)
        except TooLateError:
            assert not fits
            assert accepted
        else:
            assert fits or not accepted
            accepted.append(due_s)
            if not fits:
                return  # the lone request of an idle service, which is late


def test_one_that_is_late_already_holds_nobody_up():
    schedule = exact(target_s=5.0)
    patient, lost = accept(schedule, 100), accept(schedule, 12)
    assert patient.order_s < lost.order_s
    schedule.rate.interval_s = 30.0  # so `lost` would be answered after 31 s now, or after 61
    accept(schedule, 4)
    with pytest.raises(TooLateError):
        accept(schedule, 4.5)  # 31 s


def test_nobody_waits_for_an_upload_that_does_not_come():
    schedule = exact()
    running = accept(schedule, 10)
    assert schedule.start_next(0.0) is running
    for _ in range(5):
        schedule.accept(0.0, 6.5, 6.5)
    with pytest.raises(TooLateError):
        accept(schedule, 6.5)  # in 7 s: they count until a slot is free
    schedule.end(0.0, running, answered=False)
    assert schedule.start_next(0.0) is None
    accept(schedule, 1.5)
    assert schedule.ahead == 1


def test_without_a_known_rate_all_are_accepted_and_the_first_answer_makes_it_known():
    schedule = Schedule(5.0)
    schedule.slots = 1
    first, *_ = [accept(schedule, 0.1) for _ in range(20)]
    assert schedule.estimate_s() == 0
    assert schedule.start_next(0.0) is first
    schedule.end(2.0, first, answered=True)
    assert schedule.rate is not None
    assert (schedule.rate.interval_s, schedule.rate.latency_s) == (2.0, 2.0)
    with pytest.raises(TooLateError):
        accept(schedule, 5.0, now=2.0)


def test_the_target_is_never_below_a_few_times_of_a_lone_request():
    schedule = exact(latency_s=4.0, target_s=5.0)
    assert schedule.target_s == MIN_TARGET_LATENCIES * 4.0
    assert exact(latency_s=1.0, target_s=5.0).target_s == 5.0


def test_one_with_too_little_time_left_is_lost_unless_it_is_the_only_one():
    schedule = exact()
    schedule.slots = 2
    first, second = accept(schedule, 1.0), accept(schedule, 2.0)
    assert schedule.start_next(1.5) is first
    assert not schedule.cannot_finish(1.5, first), "it shows whether the service has become faster"
    assert schedule.start_next(1.5) is second
    assert schedule.cannot_finish(1.5, second)
    assert not schedule.cannot_finish(0.9, second)


def test_those_that_may_wait_get_every_second_answer():
    schedule = exact(target_s=10.0)
    accept(schedule, 1)
    long = [accept(schedule, 30) for _ in range(11)]
    assert [scheduled.order_s for scheduled in long] == [10.0 + 2 * number for number in range(11)]
    with pytest.raises(TooLateError) as refused:
        accept(schedule, 31.9)
    assert refused.value.estimate_s == pytest.approx(32.0)
    short = accept(schedule, 9.0)
    assert short.order_s == 9.0


@given(allowed=st.lists(st.integers(1, 60).map(lambda half: half / 2), min_size=2, max_size=2))
def test_of_requests_alike_as_many_are_accepted_if_they_allow_more_time(allowed):
    def accepted(allowed_s: float) -> int:
        schedule = exact(target_s=5.0)
        for number in range(100):
            try:
                accept(schedule, allowed_s)
            except TooLateError:
                return number
        return 100

    assert accepted(min(allowed)) <= accepted(max(allowed))


def test_one_that_may_wait_little_longer_than_the_target_is_not_behind_those_that_may_wait_long():
    schedule = exact(target_s=10.0)
    patient = [accept(schedule, 100) for _ in range(4)]
    hasty = accept(schedule, 11)
    assert order(schedule) == [patient[0], hasty, *patient[1:]]


def test_an_upload_that_does_not_come_keeps_nobody_from_waiting_long():
    schedule = exact(target_s=5.0)
    running = accept(schedule, 10)
    assert schedule.start_next(0.0) is running
    for _ in range(10):
        schedule.accept(0.0, 60, 60)
    schedule.end(0.0, running, answered=False)
    assert schedule.start_next(0.0) is None  # a slot was free, and none of them is here
    assert [accept(schedule, 60).order_s for _ in range(2)] == [5.0, 7.0]


# --- how long requests are expected to take


def expected_s(schedule: Schedule) -> float | None:
    """Of a request that is accepted now and due last."""
    return accept(schedule, 90).expected_s


def test_who_leaves_or_is_passed_is_no_longer_expected_to_be_ahead():
    schedule = exact()
    running, gone = accept(schedule, 10), accept(schedule, 20)
    slow = schedule.accept(0.0, 30, 30)
    assert schedule.start_next(0.0) is running
    last = accept(schedule, 80)
    assert (slow.expected_s, last.expected_s) == (3.0, 4.0)
    schedule.end(0.0, gone, answered=False)
    assert (slow.expected_s, last.expected_s) == (2.0, 3.0)
    schedule.end(0.0, running, answered=False)
    assert schedule.start_next(0.0) is last  # past the one whose upload is not complete
    later = accept(schedule, 40)
    assert later.expected_s == 2.0
    schedule.mark_ready(0.0, slow)
    assert later.expected_s == 3.0


def test_an_upload_that_was_passed_and_never_comes_changes_nothing_when_it_leaves():
    schedule = exact()
    slow = schedule.accept(0.0, 10, 10)
    before, running = accept(schedule, 50), accept(schedule, 60)
    assert schedule.start_next(0.0) is before
    schedule.end(0.0, slow, answered=False)
    assert running.expected_s == 2.0
    assert expected_s(schedule) == 3.0


def test_a_late_upload_waits_for_those_that_passed_it():
    schedule = exact()
    slow = schedule.accept(0.0, 10, 10)
    others = [accept(schedule, 50) for _ in range(3)]
    assert schedule.start_next(0.0) is others[0]
    schedule.slots = 3
    assert [schedule.start_next(0.0), schedule.start_next(0.0)] == others[1:]
    schedule.mark_ready(1.0, slow)
    assert slow.expected_s == 4.0


def test_expectations_stay_what_they_were_when_the_rate_changes():
    schedule = exact()
    running = accept(schedule, 90)
    assert schedule.start_next(0.0) is running
    uploads = [schedule.accept(0.0, 91, 91) for _ in range(10)]
    last = accept(schedule, 92)
    assert last.expected_s == 12.0
    schedule.rate.interval_s = 50.0
    for upload in uploads:
        schedule.end(0.0, upload, answered=False)
    assert last.expected_s == 2.0


def test_who_leaves_the_pipeline_unanswered_is_no_longer_ahead():
    schedule = exact()
    schedule.slots = 2
    running = [accept(schedule, 50) for _ in range(2)]
    last = accept(schedule, 60)
    assert [schedule.start_next(0.0), schedule.start_next(0.0)] == running
    schedule.end(0.0, running[0], answered=False)
    assert last.expected_s == 2.0
    schedule.end(1.0, running[1], answered=True)
    assert last.expected_s == 2.0


def test_the_estimate_is_behind_the_last_that_would_be_late():
    schedule = exact()
    assert schedule.start_next(0.0) is None
    running = accept(schedule, 90)
    assert schedule.start_next(0.0) is running
    for due_s in (2.5, 3.5, 4.5):
        accept(schedule, due_s)
    with pytest.raises(TooLateError) as refused:
        accept(schedule, 2.4)
    assert refused.value.estimate_s == pytest.approx(5.0)
    with pytest.raises(TooLateError):
        accept(schedule, 4.4)
    accept(schedule, 5.0)


def test_what_was_accepted_before_the_rate_was_known_has_no_expectation():
    schedule = Schedule(5.0)
    unknown = accept(schedule, 50)
    schedule.rate = ServiceRate(1.0, 1.0)
    accept(schedule, 20)
    assert unknown.expected_s is None


# --- what is learnt


@pytest.mark.parametrize(
    ("pipeline_s", "active", "interval_s", "latency_s"),
    [
        (6.0, 6.0, 1.0, 2.0),  # full: exactly an answer a second
        (2.0, 1.0, 1.0, 2.0),  # one alone: between 1/3 and 2 s
        (12.0, 6.0, 1.1, 2.0),  # full and slower
        (3.0, 6.0, 0.95, 2.0),  # full and faster
        (0.5, 1.0, 0.95, 1.85),  # one alone, and faster: at most 0.5 s
        (30.0, 1.0, 1.4, 4.8),  # one alone, and slower: at least 5 s, and all of 30 in it
        (9.0, 3.0, 1.05, 2.1),
    ],
)
def test_an_answer_bounds_interval_and_latency(pipeline_s, active, interval_s, latency_s):
    rate = ServiceRate(1.0, 2.0)
    rate.learn(pipeline_s, active, slots=6)
    assert rate.interval_s == pytest.approx(interval_s)
    assert rate.latency_s == pytest.approx(latency_s)


def test_the_margin_is_what_all_but_few_requests_keep_to():
    chance = random.Random(1)
    rate = ServiceRate(1.0, 1.0)
    later = 0
    for number in range(20_000):
        took_s = chance.uniform(0.5, 1.5)
        later += number >= 10_000 and took_s > rate.margin
        rate.learn_margin(took_s, 1.0)
    assert later <= 100
    assert rate.margin == pytest.approx(1.5, abs=0.06)


def test_the_margin_is_learnt_from_those_that_waited():
    schedule = exact()
    assert schedule.rate is not None
    alone, *waited = [accept(schedule, 100) for _ in range(9)]
    assert schedule.start_next(0.0) is alone
    schedule.end(1.3, alone, answered=True)
    assert schedule.rate.margin == 1.0
    for scheduled in waited:
        assert schedule.start_next(20.0) is scheduled
        schedule.end(21.0, scheduled, answered=True)
    assert schedule.rate.margin > 1.0


def test_the_margin_is_bounded():
    rate = ServiceRate(1.0, 1.0)
    for _ in range(1000):
        rate.learn_margin(50.0, 1.0)
    assert rate.margin == MAX_MARGIN
    for _ in range(100_000):
        rate.learn_margin(0.1, 1.0)
    assert rate.margin == 1.0
