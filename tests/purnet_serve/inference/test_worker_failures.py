"""How workers end, which images that affects, and what is counted of it."""

from __future__ import annotations

import signal

import pytest
from fake_predictor import CROWD, Act, Behaviour, image

from purnet_serve.errors import NotReadyError, WorkerError
from purnet_serve.inference import shared_memory as shared
from purnet_serve.inference.limits import RECOVERY_BATCHES
from purnet_serve.inference.protocol import Done, Loaded, encode
from purnet_serve.inference.spawn import EXIT_TIMEOUT_S, REAP_TIMEOUT_S
from purnet_serve.inference.supervisor import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    DeviceSupervisor,
)
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import FailureKind


def out_of_memory(harness) -> None:
    """Have the last worker say so of the batch it was sent."""
    worker = harness.workers.last
    number = harness.backend._devices[0].worker._last_number
    worker.inbox.clear()
    worker.say(b'{"kind": "OutOfMemory", "number": %d}\n' % number)
    harness.loop.settle()


def send_together(harness, *numbers: int, act: Act = Act.NOTHING):
    """Images that form one batch, as far as the ceiling allows."""
    harness.backend.expect(1)
    calls = [harness.send(number, act) for number in numbers]
    harness.backend.expect(-1)
    harness.work()
    return calls


# --- which worker gets a batch


@pytest.mark.parametrize("end", ["lose_pipe", "kill"])
def test_a_worker_that_is_ending_gets_no_batch(harness, end):
    ending = harness.workers.last
    ending.unkillable = True
    if end == "kill":
        harness.backend._devices[0].worker.kill(FailureKind.HANG, "too slow")
    else:
        ending.lose_pipe()
        harness.loop.settle()
    call = harness.send(1)
    assert not ending.inbox
    ending.unkillable = False
    harness.loop.advance(EXIT_TIMEOUT_S + REAP_TIMEOUT_S)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.executions() == {"mask": 1}


def test_an_image_is_not_blamed_for_a_worker_that_never_began_it(make_harness, checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    harness = make_harness(device="cuda:0,cuda:1")
    harness.bring_up()
    busy, idle = harness.workers.processes
    call = harness.send(1)
    assert busy.inbox
    idle.lose_pipe()
    harness.loop.settle()
    busy.die(-signal.SIGKILL)
    harness.loop.advance(EXIT_TIMEOUT_S)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.executions() == {"retried": 1, "mask": 1}


def test_what_a_replaced_worker_still_writes_is_in_no_mask(harness):
    stuck = harness.workers.last
    stuck.unkillable = True  # in a driver, say
    call = harness.send(1)
    stuck.lose_pipe()
    harness.loop.advance(EXIT_TIMEOUT_S + REAP_TIMEOUT_S)
    harness.bring_up()
    harness.workers.last.step()  # the successor has answered; its mask lies in shared memory
    stuck._loop._shared.pixels[:] = image(99)
    stuck.step()
    stuck._loop._shared.masks[:] = 99
    harness.work()
    assert harness.numbers([call]) == [1]
    stuck.unkillable = False
    stuck.die(-signal.SIGKILL)


# --- what is wrong with an answer


@pytest.mark.parametrize("field", ["input_size", "device"])
def test_a_worker_that_reports_its_model_wrongly_is_replaced(harness, field):
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    loaded = encode(Loaded("fake", "0" * 64, 16, "cpu", "fake", 1))
    value = {"input_size": b"16", "device": b'"cpu"'}[field]
    harness.workers.last.say(loaded.replace(value, b"null", 1))
    harness.loop.settle()
    call = harness.send(1)
    harness.loop.advance(FIRST_BACKOFF_S)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="protocol") == 1


def test_a_load_that_goes_wrong_in_an_unknown_way_is_tried_again(harness, monkeypatch):
    faults = [LookupError("unforeseen")]
    reserve = shared.reserve

    def fail_once(*arguments, **sizes):
        if faults:
            raise faults.pop()
        reserve(*arguments, **sizes)

    monkeypatch.setattr(shared, "reserve", fail_once)
    harness.workers.last.die(-signal.SIGKILL)
    call = harness.send(1)
    harness.work()
    assert not faults
    assert harness.value("purnet_failures_total", kind="protocol") == 1
    harness.loop.advance(FIRST_BACKOFF_S)
    harness.work()
    assert harness.numbers([call]) == [1]


def test_a_mishandled_answer_loses_no_image(harness, monkeypatch):
    answer = DeviceSupervisor._answer
    faults = [MemoryError()]

    def fail_once(self, slot, worker, batch, *arguments):
        if batch.tickets[slot].number == 3 and faults:
            raise faults.pop()
        return answer(self, slot, worker, batch, *arguments)

    monkeypatch.setattr(DeviceSupervisor, "_answer", fail_once)
    harness.send(0)
    calls = [harness.send(1), harness.send(2), harness.send(3)]
    harness.work()
    assert not faults
    assert harness.numbers(calls) == [1, 2, 3]
    assert harness.executions() == {"mask": 3, "abandoned": 1, "retried": 2}


def test_what_was_answered_is_counted_even_if_counting_failed(harness, monkeypatch):
    executed = InferenceMetrics.executed
    faults = [ValueError("no such label")]

    def fail_once(self, *arguments):
        if faults:
            raise faults.pop()
        executed(self, *arguments)

    monkeypatch.setattr(InferenceMetrics, "executed", fail_once)
    call = harness.send(1)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.executions() == {"abandoned": 1}


def test_the_first_reason_of_an_end_is_the_one_that_counts(harness):
    worker = harness.backend._devices[0].worker
    worker.kill(FailureKind.HANG, "first")
    worker.kill(FailureKind.PROTOCOL, "second")
    harness.work()
    assert harness.value("purnet_failures_total", kind="hang") == 1
    assert harness.value("purnet_failures_total", kind="protocol") == 0


def test_time_on_the_device_is_not_time_in_the_queue(harness):
    call = harness.send(1)
    harness.loop.advance(0.5)
    harness.work()
    assert call.result().queue_s == 0


# --- restarts


def test_deadly_images_one_after_another_do_not_make_it_unready(harness):
    for number in range(8):
        call = harness.send(number, Act.RAISE)
        harness.work()
        assert harness.numbers([call]) == [WorkerError]
        assert harness.backend.unready_reason() is None
    call = harness.send(9)
    harness.work()
    assert harness.numbers([call]) == [9]


def test_no_restart_waits_longer_than_the_longest_delay(harness):
    for _ in range(10):
        harness.workers.last.die(1)
        harness.loop.advance(MAX_BACKOFF_S)
        assert harness.workers.last.alive


def test_a_reload_forgets_earlier_failures(harness, tmp_path):
    for _ in range(4):
        harness.workers.last.die(1)
        harness.loop.advance(MAX_BACKOFF_S)
    reload = harness.loop.begin(harness.backend.reload())
    harness.work()
    assert reload.result()
    before = len(harness.workers.processes)
    harness.workers.last.die(1)
    harness.loop.settle()
    assert len(harness.workers.processes) == before + 1


@pytest.mark.parametrize("slowest_s", [0.001, 1.0])
def test_the_watchdog_waits_for_twenty_of_the_slowest_batches(make_harness, checkpoint, slowest_s):
    Behaviour(batch_s=slowest_s, image_s=0).save(checkpoint)
    harness = make_harness()
    hung = harness.bring_up()
    limit_s = max(5.0, 20 * slowest_s)
    call = harness.send(1)
    hung.stopped = True
    harness.loop.advance(limit_s - 0.1)
    assert hung.alive
    harness.loop.advance(0.1)
    assert not hung.alive
    harness.work()
    assert harness.numbers([call]) == [1]


# --- out of memory


def test_out_of_memory_halves_the_batch_that_did_not_fit(harness):
    harness.send(0)
    for number in range(1, 5):
        harness.send(number, Act.CROWDED)
    harness.work()
    assert harness.value("purnet_max_batch", device="cpu") == CROWD
    assert harness.workers.last.begun == [1, 4, 2, 2]


def test_no_room_for_a_single_image_restarts_the_worker(harness):
    call = harness.send(1)
    out_of_memory(harness)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert len(harness.workers.processes) == 2
    assert harness.value("purnet_failures_total", kind="out_of_memory") == 1
    assert harness.executions() == {"retried": 1, "mask": 1}


def test_batches_that_are_not_full_do_not_raise_the_largest_batch(harness):
    harness.send(0)
    for number in range(1, 5):
        harness.send(number, Act.CROWDED)
    harness.work()
    for number in range(2 * RECOVERY_BATCHES):
        harness.send(number)
        harness.work()
    assert harness.value("purnet_max_batch", device="cpu") == CROWD


def test_out_of_memory_starts_the_count_of_full_batches_again(harness):
    harness.send(0)
    for number in range(1, 5):
        harness.send(number, Act.CROWDED)
    harness.work()
    for number in range(RECOVERY_BATCHES - 3):  # two have been
        send_together(harness, number, number)
    assert harness.value("purnet_max_batch", device="cpu") == CROWD
    harness.backend.expect(1)
    calls = [harness.send(1), harness.send(2)]
    harness.backend.expect(-1)
    harness.loop.settle()
    out_of_memory(harness)
    harness.work()
    assert harness.numbers(calls) == [1, 2]
    assert harness.value("purnet_max_batch", device="cpu") == 1


# --- health checks


def test_each_idle_period_has_one_health_check_and_nothing_else_changes(harness):
    before = harness.series()
    for _ in range(2):
        harness.loop.advance(30)
        harness.work()
    changed = {name for name, value in harness.series().items() if value != before[name]}
    of_time_alone = {one for one in changed if "bytes" in one[0] or "event_loop" in one[0]}
    assert changed - of_time_alone == {("purnet_health_checks_total", ("ok",))}
    assert harness.value("purnet_health_checks_total", result="ok") == 2


def test_a_health_check_that_is_asked_for_goes_the_way_of_images_and_is_none(harness):
    before = harness.series()
    predict = harness.backend.predict(image(1), deadline_s=harness.loop.now + 10, health_check=True)
    check = harness.loop.begin(predict)
    harness.work()
    assert harness.numbers([check]) == [1]
    changed = {name for name, value in harness.series().items() if value != before[name]}
    assert {one for one in changed if "bytes" not in one[0]} == {
        ("purnet_health_checks_total", ("ok",))
    }


def test_a_health_check_with_a_non_finite_mask_replaces_the_worker(harness):
    sick = harness.workers.last
    harness.loop.advance(30)
    sick.inbox.clear()
    sick.say(encode(Done(1, [False], 0.1, 0, 0)))
    harness.work()
    assert not sick.alive
    assert harness.value("purnet_health_checks_total", result="failed") == 1
    assert harness.value("purnet_failures_total", kind="non_finite") == 1
    call = harness.send(1)
    harness.work()
    assert harness.numbers([call]) == [1]


def test_a_fault_of_ours_in_a_restart_is_logged_and_makes_the_device_unready(
    harness, monkeypatch, caplog
):
    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(harness.backend._devices[0]._metrics, "restarted", fail)
    harness.workers.last.die(-signal.SIGKILL)
    call = harness.send(1)
    harness.work()
    assert harness.numbers([call]) == [NotReadyError]
    assert "a fault" in harness.backend.unready_reason()
    assert [record.levelname for record in caplog.records if "given up" in record.message]


def test_a_fault_of_ours_after_a_workers_end_leaves_no_image_without_an_answer(
    harness, monkeypatch, tmp_path
):
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    call = harness.send(1)
    harness.loop.settle()
    monkeypatch.setattr(harness.backend._devices[0]._metrics, "executed", fail)
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    assert harness.numbers([call]) == [WorkerError]
    assert "a fault" in harness.backend.unready_reason()
    monkeypatch.undo()
    reload = harness.reload(Behaviour(name="other").save(tmp_path / "other.json"))
    harness.work()
    assert reload.result().name == "other", "the reload waits for no batch of that worker"
    assert harness.backend.unready_reason() is None
