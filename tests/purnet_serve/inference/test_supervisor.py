from __future__ import annotations

import signal

import pytest
from fake_predictor import CROWD, Act, Behaviour

from purnet_serve.errors import (
    DeadlineError,
    NonFiniteError,
    WorkerError,
)
from purnet_serve.inference.limits import RECOVERY_BATCHES
from purnet_serve.inference.supervisor import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    DeviceState,
    backoff_s,
)

DONE = (
    b'{"kind": "Done", "number": 1, "finite": [true], "infer_s": 0.5,'
    b' "resident_bytes": 4096, "device_bytes": 0}\n'
)


def test_each_gets_its_own_mask(harness):
    calls = [harness.send(number) for number in range(40)]
    harness.work()
    assert harness.numbers(calls) == list(range(40))
    assert harness.workers.last.begun == [1, 16, 16, 7]
    assert harness.executions() == {"mask": 40}


def test_an_answer_names_the_model_and_where_the_time_went(harness):
    first, second = harness.send(1), harness.send(2)
    harness.loop.advance(0.5)
    harness.work()
    assert second.result().queue_s == 0.5
    assert second.result().batch_size == 1
    assert second.result().infer_s >= 0
    assert first.result().model == harness.backend.model


def test_a_cpu_is_one_batch_deep(harness):
    for number in range(60):
        harness.send(number)
    assert len(harness.workers.last.inbox) == 1
    harness.work()


def test_cuda_is_two_batches_deep(make_harness, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    harness = make_harness()
    harness.bring_up()
    calls = [harness.send(number) for number in range(60)]
    assert len(harness.workers.last.inbox) == 2
    harness.work()
    assert harness.numbers(calls) == list(range(60))


def test_a_batch_that_had_not_begun_goes_back_untouched(make_harness, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    harness = make_harness()
    worker = harness.bring_up()
    calls = [harness.send(number) for number in range(17)]
    assert len(worker.inbox) == 2
    gone = calls.pop()
    gone.cancel()
    worker.die(-signal.SIGSEGV)
    harness.loop.settle()
    assert harness.value("purnet_queue_depth") == 16
    harness.work()
    assert harness.numbers(calls) == list(range(16))
    assert harness.workers.last.begun == [1, 15]
    assert harness.executions() == {"retried": 1, "mask": 16}


def test_the_batch_of_a_dead_worker_is_retried_image_by_image(harness):
    harness.send(0)
    calls = [harness.send(number) for number in range(1, 6)]
    harness.step()
    harness.workers.last.die(-signal.SIGKILL)
    harness.work()
    assert harness.numbers(calls) == [1, 2, 3, 4, 5]
    assert harness.workers.last.begun == [1] * 5
    assert harness.executions() == {"mask": 6, "retried": 5}
    assert harness.value("purnet_failures_total", kind="signal") == 1
    assert harness.value("purnet_worker_restarts_total") == 1


def test_an_image_that_ends_workers_fails_alone(harness):
    harness.send(0)
    calls = [harness.send(n, Act.RAISE if n == 7 else Act.NOTHING) for n in range(1, 17)]
    harness.work()
    assert harness.numbers(calls) == [n if n != 7 else WorkerError for n in range(1, 17)]
    assert harness.executions() == {"mask": 16, "retried": 16, "failed": 1}
    assert harness.value("purnet_failures_total", kind="exception") == 2


def test_the_log_says_where_the_engine_raised(harness, caplog):
    harness.send(1, Act.RAISE)
    harness.work()
    lost = next(record for record in caplog.records if record.getMessage() == "worker lost")
    assert "illegal memory access" in lost.reason
    assert "fake_predictor.py" in lost.traceback


def test_a_lone_image_is_retried_too(harness):
    call = harness.send(1)
    harness.workers.last.die(-signal.SIGKILL)
    harness.work()
    assert harness.numbers([call]) == [1]


def test_a_hung_worker_is_killed_after_the_watchdog_time(harness):
    call = harness.send(1)
    hung = harness.workers.last
    hung.stopped = True
    harness.loop.advance(4.99)
    assert hung.alive
    harness.loop.advance(0.01)
    assert not hung.alive
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="hang") == 1


def test_the_watchdog_time_of_a_second_batch_starts_when_it_does(make_harness, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    harness = make_harness()
    worker = harness.bring_up()
    calls = [harness.send(number) for number in range(17)]
    harness.loop.advance(4)
    worker.step()
    harness.loop.advance(4)
    assert worker.alive
    harness.work()
    assert harness.numbers(calls) == list(range(17))


def test_a_worker_without_its_pipe_is_killed(harness):
    call = harness.send(1)
    lost = harness.workers.last
    lost.lose_pipe()
    harness.loop.advance(1)
    assert not lost.alive
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="pipe") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        DONE.replace(b"0.5", b'"x"'),
        DONE.replace(b"0.5", b"NaN"),
        DONE.replace(b"4096", b"null"),
        DONE.replace(b"true", b"1"),
        b'{"kind": "Ready"}\n',
        b'{"kind": "LoadFailed", "detail": "late"}\n',
        b'{"kind": "OutOfMemory", "number": 99}\n',
        b'{"kind": "Done", "number": 1, "finite": [], "infer_s": 0, "resident_bytes": 0, '
        b'"device_bytes": 0}\n',
    ],
)
def test_a_worker_that_breaks_the_protocol_is_replaced(harness, line):
    call = harness.send(1)
    harness.workers.last.say(line)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="protocol") == 1


def test_a_non_finite_mask_fails_that_image_only(harness):
    harness.send(0)
    calls = [harness.send(1), harness.send(2, Act.NON_FINITE), harness.send(3)]
    harness.work()
    assert harness.numbers(calls) == [1, NonFiniteError, 3]
    assert harness.executions() == {"mask": 3, "non_finite": 1}
    assert len(harness.workers.processes) == 1


def test_out_of_memory_halves_the_batch_and_keeps_the_worker(harness):
    harness.send(0)
    calls = [harness.send(n, Act.CROWDED if n == 3 else Act.NOTHING) for n in range(1, 17)]
    harness.work()
    assert harness.numbers(calls) == list(range(1, 17))
    assert harness.workers.last.begun[:5] == [1, 16, 8, 4, 2]
    assert harness.value("purnet_max_batch", device="cpu") == CROWD
    assert len(harness.workers.processes) == 1
    harness.executions()


def test_the_largest_batch_recovers_slowly(harness):
    harness.send(0)
    for n in range(1, 17):
        harness.send(n, Act.CROWDED)
    harness.work()
    assert harness.value("purnet_max_batch", device="cpu") == CROWD
    for number in range(2 * RECOVERY_BATCHES + 1):
        harness.send(number)
        if number % 50 == 0:
            harness.work()
    harness.work()
    assert harness.value("purnet_max_batch", device="cpu") == CROWD + 1


def test_warm_up_finds_the_largest_batch_that_fits(make_harness, checkpoint):
    Behaviour(most=5).save(checkpoint)
    harness = make_harness()
    harness.bring_up()
    assert harness.value("purnet_max_batch", device="cpu") == 4


def test_an_image_nobody_waits_for_is_not_retried(harness):
    harness.send(0)
    gone, late, stays = harness.send(1), harness.send(2, deadline_s=1), harness.send(3)
    harness.step()
    gone.cancel()
    harness.loop.advance(1)
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    assert harness.value("purnet_queue_depth") == 1
    harness.work()
    assert isinstance(late.exception(), DeadlineError)
    assert harness.numbers([stays]) == [3]
    assert harness.workers.last.begun == [1]
    assert harness.executions() == {"abandoned": 2, "retried": 1, "mask": 2}


def test_a_deadline_passes_on_time_while_the_worker_restarts(harness):
    call = harness.send(1, deadline_s=2)
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.advance(2)
    assert isinstance(call.exception(), DeadlineError)
    assert harness.value("purnet_expired_total", place="queue") == 1
    harness.work()


def test_the_first_restart_comes_at_once_and_later_ones_wait(harness):
    def processes() -> int:
        harness.loop.settle()
        return len(harness.workers.processes)

    harness.workers.last.die(-signal.SIGKILL)
    assert processes() == 2
    harness.workers.last.die(-signal.SIGKILL)
    assert processes() == 2
    harness.loop.advance(FIRST_BACKOFF_S)
    assert processes() == 3
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.advance(1.9 * FIRST_BACKOFF_S)
    assert processes() == 3
    harness.loop.advance(0.1 * FIRST_BACKOFF_S)
    assert processes() == 4


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0), (1, 0), (2, 1), (3, 2), (6, 16), (7, 30), (8, 30), (1_000_000, 30)],
)
def test_attempts_go_on_however_often_they_failed(failures, seconds):
    assert backoff_s(failures) == seconds


def test_a_worker_that_loads_for_ever_is_ended(make_harness):
    harness = make_harness(load_timeout_s=60)
    harness.workers.last.stopped = True
    harness.loop.advance(60)
    assert not harness.workers.processes[0].alive
    assert len(harness.workers.processes) == 2


def test_an_idle_worker_that_hangs_is_found_by_its_health_check(harness):
    idle = harness.workers.last
    idle.stopped = True
    harness.loop.advance(35)
    assert not idle.alive
    assert harness.value("purnet_health_checks_total", result="failed") == 1
    call = harness.send(1)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.executions() == {"mask": 1}


def test_a_busy_worker_gets_no_health_check(harness):
    harness.loop.advance(29)
    call = harness.send(1)
    harness.work()
    harness.loop.advance(29)
    harness.work()
    assert harness.value("purnet_health_checks_total", result="ok") == 0
    assert harness.numbers([call]) == [1]


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(11, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
    ],
    ids=["process", "thread"],
)
def test_a_worker_that_cannot_be_started_is_tried_again(harness, monkeypatch, error):
    harness.send(0)
    harness.work()
    refusals = [error] * 2
    spawn = type(harness.workers).__call__

    async def refuse_twice(self, *arguments):
        if refusals:
            raise refusals.pop()
        return await spawn(self, *arguments)

    monkeypatch.setattr(type(harness.workers), "__call__", refuse_twice)
    harness.workers.last.die(-signal.SIGKILL)
    call = harness.send(1)
    for _ in range(4):
        harness.work()
        harness.loop.advance(2)
    harness.work()
    assert not refusals
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="exit") == 2


def test_the_state_says_what_the_supervisor_does(make_harness, checkpoint):
    harness = make_harness()
    (device,) = harness.backend._devices
    assert device.state is DeviceState.LOADING
    harness.bring_up()
    assert device.state is DeviceState.SERVING
    harness.workers.last.die(1)
    harness.loop.settle()
    assert device.state is DeviceState.LOADING, "the first restart comes at once"
    harness.workers.last.die(1)
    harness.loop.settle()
    assert device.state is DeviceState.BACKING_OFF
    assert device.unready_reason is None, "it counts as ready for a while"
    good = checkpoint.read_bytes()
    checkpoint.write_text("rubbish")
    harness.loop.advance(FIRST_BACKOFF_S)
    harness.work()
    assert device.state is DeviceState.FAILED
    checkpoint.write_bytes(good)
    harness.loop.advance(MAX_BACKOFF_S)
    assert device.state is DeviceState.FAILED, "until a worker serves again"
    harness.work()
    assert device.state is DeviceState.SERVING
    harness.loop.finish(harness.backend.stop())
    assert device.state is DeviceState.CLOSED
