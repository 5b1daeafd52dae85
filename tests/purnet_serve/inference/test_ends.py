"""How workers end, what that costs whom, and what is counted of it."""

from __future__ import annotations

import itertools
import signal
from types import SimpleNamespace

import pytest
from fake_predictor import CROWD, Act, Behaviour, image

from purnet_serve.errors import WorkerError
from purnet_serve.inference import shared_memory as shared
from purnet_serve.inference.protocol import Done, Loaded, encode
from purnet_serve.inference.supervisor import FIRST_DELAY_S, MAX_DELAY_S, RECOVERY_BATCHES, Lane
from purnet_serve.inference.worker_handle import PARTING_S, REAP_S
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import FailureKind


def out_of_memory(bench) -> None:
    """Have the last worker say so of the batch it was sent."""
    worker = bench.launch.last
    number = bench.backend._lanes[0].worker._sent
    worker.inbox.clear()
    worker.say(b'{"kind": "OutOfMemory", "number": %d}\n' % number)
    bench.loop.settle()


def send_together(bench, *numbers: int, act: Act = Act.NOTHING):
    """Images that form one batch, as far as the ceiling allows."""
    bench.backend.expect(1)
    calls = [bench.send(number, act) for number in numbers]
    bench.backend.expect(-1)
    bench.work()
    return calls


# --- who is handed work


@pytest.mark.parametrize("end", ["lose_pipe", "kill"])
def test_a_worker_that_is_ending_is_handed_nothing(bench, end):
    ending = bench.launch.last
    ending.unkillable = True
    if end == "kill":
        bench.backend._lanes[0].worker.kill(FailureKind.HANG, "too slow")
    else:
        ending.lose_pipe()
        bench.loop.settle()
    call = bench.send(1)
    assert not ending.inbox
    ending.unkillable = False
    bench.loop.advance(PARTING_S + REAP_S)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.executions() == {"mask": 1}


def test_an_image_is_not_blamed_for_a_worker_that_never_began_it(make_bench, checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    bench = make_bench(device="cuda:0,cuda:1")
    bench.bring_up()
    busy, idle = bench.launch.processes
    call = bench.send(1)
    assert busy.inbox
    idle.lose_pipe()
    bench.loop.settle()
    busy.die(-signal.SIGKILL)
    bench.loop.advance(PARTING_S)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.executions() == {"retried": 1, "mask": 1}


def test_what_a_replaced_worker_still_writes_is_in_nobodys_mask(bench):
    stuck = bench.launch.last
    stuck.unkillable = True  # in a driver, say
    call = bench.send(1)
    stuck.lose_pipe()
    bench.loop.advance(PARTING_S + REAP_S)
    bench.bring_up()
    bench.launch.last.step()  # the successor has answered; its mask lies in shared memory
    stuck._servant._shared.pixels[:] = image(99)
    stuck.step()
    stuck._servant._shared.masks[:] = 99
    bench.work()
    assert bench.numbers([call]) == [1]
    stuck.unkillable = False
    stuck.die(-signal.SIGKILL)


# --- what is wrong with an answer


@pytest.mark.parametrize("field", ["input_size", "device"])
def test_a_worker_that_introduces_itself_wrongly_is_replaced(bench, field):
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    loaded = encode(Loaded("fake", "0" * 64, 16, "cpu", "fake"))
    value = {"input_size": b"16", "device": b'"cpu"'}[field]
    bench.launch.last.say(loaded.replace(value, b"null", 1))
    bench.loop.settle()
    call = bench.send(1)
    bench.loop.advance(FIRST_DELAY_S)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.value("purnet_failures_total", kind="protocol") == 1


def test_a_load_that_goes_wrong_in_an_unknown_way_is_tried_again(bench, monkeypatch):
    faults = [LookupError("nobody foresaw this")]
    reserve = shared.reserve

    def fail_once(*arguments, **sizes):
        if faults:
            raise faults.pop()
        reserve(*arguments, **sizes)

    monkeypatch.setattr(shared, "reserve", fail_once)
    bench.launch.last.die(-signal.SIGKILL)
    call = bench.send(1)
    bench.work()
    assert not faults
    assert bench.value("purnet_failures_total", kind="protocol") == 1
    bench.loop.advance(FIRST_DELAY_S)
    bench.work()
    assert bench.numbers([call]) == [1]


def test_an_answer_that_is_mishandled_costs_nobody_theirs(bench, monkeypatch):
    settle = Lane._settle
    faults = [MemoryError()]

    def fail_once(self, ticket, *arguments):
        if ticket.number == 3 and faults:
            raise faults.pop()
        return settle(self, ticket, *arguments)

    monkeypatch.setattr(Lane, "_settle", fail_once)
    bench.send(0)
    calls = [bench.send(1), bench.send(2), bench.send(3)]
    bench.work()
    assert not faults
    assert bench.numbers(calls) == [1, 2, 3]
    assert bench.executions() == {"mask": 3, "late": 1, "retried": 2}


def test_what_was_answered_is_counted_even_if_counting_failed(bench, monkeypatch):
    executed = InferenceMetrics.executed
    faults = [ValueError("no such label")]

    def fail_once(self, *arguments):
        if faults:
            raise faults.pop()
        executed(self, *arguments)

    monkeypatch.setattr(InferenceMetrics, "executed", fail_once)
    call = bench.send(1)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.executions() == {"late": 1}


def test_the_first_reason_of_an_end_is_the_one_that_counts(bench):
    worker = bench.backend._lanes[0].worker
    worker.kill(FailureKind.HANG, "first")
    worker.kill(FailureKind.PROTOCOL, "second")
    bench.work()
    assert bench.value("purnet_failures_total", kind="hang") == 1
    assert bench.value("purnet_failures_total", kind="protocol") == 0


def test_time_on_the_device_is_not_time_in_the_queue(bench):
    call = bench.send(1)
    bench.loop.advance(0.5)
    bench.work()
    assert call.result().queue_s == 0


# --- restarts


def test_deadly_images_one_after_another_do_not_make_it_unready(bench):
    for number in range(8):
        call = bench.send(number, Act.RAISE)
        bench.work()
        assert bench.numbers([call]) == [WorkerError]
        assert bench.backend.unready_reason() is None
    call = bench.send(9)
    bench.work()
    assert bench.numbers([call]) == [9]


def test_no_restart_waits_longer_than_the_longest_delay(bench):
    for _ in range(10):
        bench.launch.last.die(1)
        bench.loop.advance(MAX_DELAY_S)
        assert bench.launch.last.alive


def test_a_reload_forgets_earlier_failures(bench, tmp_path):
    for _ in range(4):
        bench.launch.last.die(1)
        bench.loop.advance(MAX_DELAY_S)
    reload = bench.loop.begin(bench.backend.reload())
    bench.work()
    assert reload.result()
    before = len(bench.launch.processes)
    bench.launch.last.die(1)
    bench.loop.settle()
    assert len(bench.launch.processes) == before + 1


@pytest.mark.parametrize("slowest_s", [0.0, 1.0])
def test_the_watchdog_waits_for_twenty_of_the_slowest_batches(make_bench, monkeypatch, slowest_s):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: slowest_s * next(ticks))
    monkeypatch.setattr("purnet_serve.inference.worker_main.time", clock)
    bench = make_bench()
    hung = bench.bring_up()
    limit_s = max(5.0, 20 * slowest_s)
    call = bench.send(1)
    hung.stopped = True
    bench.loop.advance(limit_s - 0.1)
    assert hung.alive
    bench.loop.advance(0.1)
    assert not hung.alive
    bench.work()
    assert bench.numbers([call]) == [1]


# --- out of memory


def test_it_is_half_of_the_batch_that_may_fit_not_half_of_the_ceiling(bench):
    bench.send(0)
    for number in range(1, 5):
        bench.send(number, Act.CROWDED)
    bench.work()
    assert bench.value("purnet_max_batch", device="cpu") == CROWD
    assert bench.launch.last.begun == [1, 4, 2, 2]


def test_no_room_for_a_single_image_restarts_the_worker(bench):
    call = bench.send(1)
    out_of_memory(bench)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert len(bench.launch.processes) == 2
    assert bench.value("purnet_failures_total", kind="out_of_memory") == 1
    assert bench.executions() == {"retried": 1, "mask": 1}


def test_batches_that_are_not_full_show_nothing_of_the_memory(bench):
    bench.send(0)
    for number in range(1, 5):
        bench.send(number, Act.CROWDED)
    bench.work()
    for number in range(2 * RECOVERY_BATCHES):
        bench.send(number)
        bench.work()
    assert bench.value("purnet_max_batch", device="cpu") == CROWD


def test_out_of_memory_ends_the_calm(bench):
    bench.send(0)
    for number in range(1, 5):
        bench.send(number, Act.CROWDED)
    bench.work()
    for number in range(RECOVERY_BATCHES - 3):  # two have been
        send_together(bench, number, number)
    assert bench.value("purnet_max_batch", device="cpu") == CROWD
    bench.backend.expect(1)
    calls = [bench.send(1), bench.send(2)]
    bench.backend.expect(-1)
    bench.loop.settle()
    out_of_memory(bench)
    bench.work()
    assert bench.numbers(calls) == [1, 2]
    assert bench.value("purnet_max_batch", device="cpu") == 1


# --- canaries


def test_every_idle_while_has_its_canary_and_nothing_else_changes(bench):
    before = bench.series()
    for _ in range(2):
        bench.loop.advance(30)
        bench.work()
    changed = {name for name, value in bench.series().items() if value != before[name]}
    of_time_alone = {one for one in changed if "bytes" in one[0] or "event_loop" in one[0]}
    assert changed - of_time_alone == {("purnet_canaries_total", ("ok",))}
    assert bench.value("purnet_canaries_total", result="ok") == 2


def test_a_canary_that_comes_back_as_nonsense_replaces_the_worker(bench):
    sick = bench.launch.last
    bench.loop.advance(30)
    sick.inbox.clear()
    sick.say(encode(Done(1, [False], 0.1, 0, 0)))
    bench.work()
    assert not sick.alive
    assert bench.value("purnet_canaries_total", result="failed") == 1
    assert bench.value("purnet_failures_total", kind="non_finite") == 1
    call = bench.send(1)
    bench.work()
    assert bench.numbers([call]) == [1]
