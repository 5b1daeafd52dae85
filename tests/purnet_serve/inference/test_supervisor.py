from __future__ import annotations

import signal

import pytest
from fake_predictor import CROWD, Act, Behaviour

from purnet_serve.errors import (
    DeadlineError,
    NonFiniteError,
    WorkerError,
)
from purnet_serve.inference.supervisor import FIRST_DELAY_S, RECOVERY_BATCHES

DONE = (
    b'{"kind": "Done", "number": 1, "finite": [true], "infer_s": 0.5,'
    b' "resident_bytes": 4096, "device_bytes": 0}\n'
)


def test_each_gets_its_own_mask(bench):
    calls = [bench.send(number) for number in range(40)]
    bench.work()
    assert bench.numbers(calls) == list(range(40))
    assert bench.launch.last.begun == [1, 16, 16, 7]
    assert bench.executions() == {"mask": 40}


def test_an_answer_tells_the_model_and_where_the_time_went(bench):
    first, second = bench.send(1), bench.send(2)
    bench.loop.advance(0.5)
    bench.work()
    assert second.result().queue_s == 0.5
    assert second.result().batch_size == 1
    assert second.result().infer_s >= 0
    assert first.result().model == bench.backend.model


def test_a_cpu_is_one_batch_deep(bench):
    for number in range(60):
        bench.send(number)
    assert len(bench.launch.last.inbox) == 1
    bench.work()


def test_cuda_is_two_batches_deep(make_bench, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    bench = make_bench()
    bench.bring_up()
    calls = [bench.send(number) for number in range(60)]
    assert len(bench.launch.last.inbox) == 2
    bench.work()
    assert bench.numbers(calls) == list(range(60))


def test_a_batch_that_had_not_begun_goes_back_untouched(make_bench, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    bench = make_bench()
    worker = bench.bring_up()
    calls = [bench.send(number) for number in range(17)]
    assert len(worker.inbox) == 2
    gone = calls.pop()
    gone.cancel()
    worker.die(-signal.SIGSEGV)
    bench.loop.settle()
    assert bench.value("purnet_queue_depth") == 16
    bench.work()
    assert bench.numbers(calls) == list(range(16))
    assert bench.launch.last.begun == [1, 15]
    assert bench.executions() == {"retried": 1, "mask": 16}


def test_the_batch_of_a_dead_worker_is_retried_image_by_image(bench):
    bench.send(0)
    calls = [bench.send(number) for number in range(1, 6)]
    bench.step()
    bench.launch.last.die(-signal.SIGKILL)
    bench.work()
    assert bench.numbers(calls) == [1, 2, 3, 4, 5]
    assert bench.launch.last.begun == [1] * 5
    assert bench.executions() == {"mask": 6, "retried": 5}
    assert bench.value("purnet_failures_total", kind="signal") == 1
    assert bench.value("purnet_worker_restarts_total") == 1


def test_a_poisonous_image_fails_alone(bench):
    bench.send(0)
    calls = [bench.send(n, Act.RAISE if n == 7 else Act.NOTHING) for n in range(1, 17)]
    bench.work()
    assert bench.numbers(calls) == [n if n != 7 else WorkerError for n in range(1, 17)]
    assert bench.executions() == {"mask": 16, "retried": 16, "failed": 1}
    assert bench.value("purnet_failures_total", kind="exception") == 2


def test_the_log_tells_where_the_engine_raised(bench, caplog):
    bench.send(1, Act.RAISE)
    bench.work()
    lost = next(record for record in caplog.records if record.getMessage() == "worker lost")
    assert "illegal memory access" in lost.reason
    assert "fake_predictor.py" in lost.trace


def test_a_lone_image_gets_its_second_chance_too(bench):
    call = bench.send(1)
    bench.launch.last.die(-signal.SIGKILL)
    bench.work()
    assert bench.numbers([call]) == [1]


def test_a_hung_worker_is_killed_after_the_watchdog_time(bench):
    call = bench.send(1)
    hung = bench.launch.last
    hung.stopped = True
    bench.loop.advance(4.99)
    assert hung.alive
    bench.loop.advance(0.01)
    assert not hung.alive
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.value("purnet_failures_total", kind="hang") == 1


def test_the_watchdog_time_of_a_second_batch_starts_when_it_does(make_bench, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    bench = make_bench()
    worker = bench.bring_up()
    calls = [bench.send(number) for number in range(17)]
    bench.loop.advance(4)
    worker.step()
    bench.loop.advance(4)
    assert worker.alive
    bench.work()
    assert bench.numbers(calls) == list(range(17))


def test_a_worker_without_its_pipe_is_killed(bench):
    call = bench.send(1)
    lost = bench.launch.last
    lost.lose_pipe()
    bench.loop.advance(1)
    assert not lost.alive
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.value("purnet_failures_total", kind="pipe") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        DONE.replace(b"0.5", b'"x"'),
        DONE.replace(b"0.5", b"NaN"),
        DONE.replace(b"4096", b"null"),
        DONE.replace(b"true", b"1"),
        b'{"kind": "Ready"}\n',
        b'{"kind": "Refused", "detail": "late"}\n',
        b'{"kind": "OutOfMemory", "number": 99}\n',
        b'{"kind": "Done", "number": 1, "finite": [], "infer_s": 0, "resident_bytes": 0, '
        b'"device_bytes": 0}\n',
    ],
)
def test_a_worker_that_talks_nonsense_is_replaced(bench, line):
    call = bench.send(1)
    bench.launch.last.say(line)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.value("purnet_failures_total", kind="protocol") == 1


def test_a_non_finite_mask_fails_that_image_only(bench):
    bench.send(0)
    calls = [bench.send(1), bench.send(2, Act.NON_FINITE), bench.send(3)]
    bench.work()
    assert bench.numbers(calls) == [1, NonFiniteError, 3]
    assert bench.executions() == {"mask": 3, "non_finite": 1}
    assert len(bench.launch.processes) == 1


def test_out_of_memory_halves_the_batch_and_keeps_the_worker(bench):
    bench.send(0)
    calls = [bench.send(n, Act.CROWDED if n == 3 else Act.NOTHING) for n in range(1, 17)]
    bench.work()
    assert bench.numbers(calls) == list(range(1, 17))
    assert bench.launch.last.begun[:5] == [1, 16, 8, 4, 2]
    assert bench.value("purnet_max_batch", device="cpu") == CROWD
    assert len(bench.launch.processes) == 1
    bench.executions()


def test_the_ceiling_recovers_slowly(bench):
    bench.send(0)
    for n in range(1, 17):
        bench.send(n, Act.CROWDED)
    bench.work()
    assert bench.value("purnet_max_batch", device="cpu") == CROWD
    for number in range(2 * RECOVERY_BATCHES + 1):
        bench.send(number)
        if number % 50 == 0:
            bench.work()
    bench.work()
    assert bench.value("purnet_max_batch", device="cpu") == CROWD + 1


def test_warm_up_finds_the_largest_batch_that_fits(make_bench, checkpoint):
    Behaviour(most=5).save(checkpoint)
    bench = make_bench()
    bench.bring_up()
    assert bench.value("purnet_max_batch", device="cpu") == 5


def test_an_image_nobody_waits_for_is_not_retried(bench):
    bench.send(0)
    gone, late, stays = bench.send(1), bench.send(2, deadline_s=1), bench.send(3)
    bench.step()
    gone.cancel()
    bench.loop.advance(1)
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    assert bench.value("purnet_queue_depth") == 1
    bench.work()
    assert isinstance(late.exception(), DeadlineError)
    assert bench.numbers([stays]) == [3]
    assert bench.launch.last.begun == [1]
    assert bench.executions() == {"late": 2, "retried": 1, "mask": 2}


def test_a_deadline_passes_on_time_while_the_worker_restarts(bench):
    call = bench.send(1, deadline_s=2)
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.advance(2)
    assert isinstance(call.exception(), DeadlineError)
    assert bench.value("purnet_expired_total", place="queue") == 1
    bench.work()


def test_the_first_restart_comes_at_once_and_later_ones_wait(bench):
    def processes() -> int:
        bench.loop.settle()
        return len(bench.launch.processes)

    bench.launch.last.die(-signal.SIGKILL)
    assert processes() == 2
    bench.launch.last.die(-signal.SIGKILL)
    assert processes() == 2
    bench.loop.advance(FIRST_DELAY_S)
    assert processes() == 3
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.advance(1.9 * FIRST_DELAY_S)
    assert processes() == 3
    bench.loop.advance(0.1 * FIRST_DELAY_S)
    assert processes() == 4


def test_a_worker_that_loads_for_ever_is_ended(make_bench):
    bench = make_bench(load_timeout_s=60)
    bench.launch.last.stopped = True
    bench.loop.advance(60)
    assert not bench.launch.processes[0].alive
    assert len(bench.launch.processes) == 2


def test_a_worker_that_died_in_its_sleep_is_found_by_its_canary(bench):
    sleeping = bench.launch.last
    sleeping.stopped = True
    bench.loop.advance(35)
    assert not sleeping.alive
    assert bench.value("purnet_canaries_total", result="failed") == 1
    call = bench.send(1)
    bench.work()
    assert bench.numbers([call]) == [1]
    assert bench.executions() == {"mask": 1}


def test_a_busy_worker_gets_no_canary(bench):
    bench.loop.advance(29)
    call = bench.send(1)
    bench.work()
    bench.loop.advance(29)
    bench.work()
    assert bench.value("purnet_canaries_total", result="ok") == 0
    assert bench.numbers([call]) == [1]


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(11, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
    ],
    ids=["process", "thread"],
)
def test_a_worker_that_cannot_be_started_is_tried_again(bench, monkeypatch, error):
    bench.send(0)
    bench.work()
    refusals = [error] * 2
    launch = type(bench.launch).__call__

    async def refuse_twice(self, *arguments):
        if refusals:
            raise refusals.pop()
        return await launch(self, *arguments)

    monkeypatch.setattr(type(bench.launch), "__call__", refuse_twice)
    bench.launch.last.die(-signal.SIGKILL)
    call = bench.send(1)
    for _ in range(4):
        bench.work()
        bench.loop.advance(2)
    bench.work()
    assert not refusals
    assert bench.numbers([call]) == [1]
    assert bench.value("purnet_failures_total", kind="exit") == 2
