from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fake_predictor import Behaviour

from purnet_serve.errors import (
    DrainingError,
    NotReadyError,
    StartupError,
)
from purnet_serve.inference.backend import Throughput
from purnet_serve.inference.protocol import Loaded, encode
from purnet_serve.inference.spawn import EXIT_TIMEOUT_S
from purnet_serve.inference.supervisor import FAILED_AFTER, RESTART_GRACE_S


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (Behaviour(refuse="There is no device here."), "There is no device here."),
        (Behaviour(fail_check=True), "The reference photo gives another mask."),
    ],
)
def test_a_start_that_is_refused_says_why(make_harness, checkpoint, behaviour, why):
    behaviour.save(checkpoint)
    harness = make_harness()
    waiting = harness.loop.begin(harness.backend.wait_ready())
    assert harness.backend.unready_reason() == "The model is being loaded."
    harness.step()
    error = waiting.exception()
    assert isinstance(error, StartupError)
    assert str(error) == why


@pytest.mark.parametrize(
    ("asked", "found"), [("cuda:0", "cpu"), ("cuda:1", "cuda:0")], ids=["cpu", "another gpu"]
)
def test_a_demanded_device_is_never_replaced_by_another(make_harness, checkpoint, asked, found):
    Behaviour(device=found).save(checkpoint)
    harness = make_harness(device=asked)
    waiting = harness.loop.begin(harness.backend.wait_ready())
    harness.step()
    assert str(waiting.exception()) == f"The model was asked onto {asked} and came up on {found}."


@pytest.mark.parametrize("size", [16, 32])
def test_a_file_that_changes_while_two_devices_start_ends_the_start(make_harness, checkpoint, size):
    Behaviour(device="cuda").save(checkpoint)
    harness = make_harness(device="cuda:0,cuda:1")
    waiting = harness.loop.begin(harness.backend.wait_ready())
    first, second = harness.workers.alive
    first.step()
    Behaviour(device="cuda", name="other", input_size=size).save(checkpoint)
    second.step()
    for process in (first, second):
        harness.loop.settle()
        process.step()
    harness.loop.settle()
    error = waiting.exception()
    assert isinstance(error, StartupError)
    assert "The checkpoint file is no longer" in str(error)
    harness.work()
    assert harness.workers.alive == [first]


def test_the_device_that_auto_found_stays(make_harness, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    harness = make_harness()
    harness.bring_up()
    model = harness.backend.model
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    on_cpu = Loaded(model.name, model.sha256, model.input_size, "cpu", "fake", 1)
    harness.workers.last.say(encode(on_cpu))
    harness.loop.settle()
    assert harness.backend.unready_reason() == "The model was asked onto cuda:0 and came up on cpu."


def test_a_worker_that_never_comes_up_ends_the_start(make_harness):
    harness = make_harness()
    waiting = harness.loop.begin(harness.backend.wait_ready())
    for _ in range(FAILED_AFTER):
        harness.workers.last.die(1)
        harness.loop.advance(30)
    assert isinstance(waiting.exception(), StartupError)


def test_one_worker_per_device(make_harness, checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    harness = make_harness(device="cuda:0,cuda:1")
    waiting = harness.loop.begin(harness.backend.wait_ready())
    first, second = harness.workers.processes
    for process in (first, first, second, second):
        harness.loop.settle()
        assert not waiting.done()
        process.step()
    harness.loop.settle()
    assert waiting.done()
    calls = [harness.send(1), harness.send(2)]
    harness.work()
    assert [process.begun for process in harness.workers.processes] == [[1], [1]]
    assert harness.numbers(calls) == [1, 2]


def test_one_worker_down_leaves_the_service_ready(make_harness, checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    harness = make_harness(device="cuda:0,cuda:1")
    harness.bring_up()
    checkpoint.write_text("rubbish")
    harness.workers.processes[0].die(-signal.SIGKILL)
    harness.work()
    assert harness.backend.unready_reason() is None
    call = harness.send(1)
    harness.work()
    assert harness.numbers([call]) == [1]


@pytest.mark.parametrize(
    ("behaviour", "devices", "throughput"),
    [
        (Behaviour(streams=3), "cpu", Throughput(0.013, 0.013 / 3, concurrency=3)),
        (Behaviour(streams=4, most=2), "cpu", Throughput(0.012, 0.012 / 2, concurrency=2)),
        (Behaviour(), "cpu", Throughput(0.011, 0.026 / 16, concurrency=16)),
        (
            Behaviour(device="cuda"),
            "cuda:0,cuda:1",
            Throughput(0.011, 0.026 / 16 / 2, concurrency=64),
        ),
    ],
    ids=["streams", "fewer streams than the engine has", "batches", "two gpus"],
)
def test_the_pace_is_that_of_all_devices_as_they_measured_it(
    make_harness, checkpoint, behaviour, devices, throughput
):
    behaviour.save(checkpoint)
    harness = make_harness(device=devices)
    assert harness.backend.throughput is None
    harness.bring_up()
    found = harness.backend.throughput
    assert found.latency_s == pytest.approx(throughput.latency_s)
    assert found.interval_s == pytest.approx(throughput.interval_s)
    assert found.concurrency == throughput.concurrency
    for process in harness.workers.alive:
        process.die(1)
    harness.loop.settle()
    assert harness.backend.throughput.concurrency, "while none has a worker, the last one known"
    harness.work()


def test_stopping_fails_what_is_open_and_refuses_more(harness):
    on_device, queued = harness.send(1), harness.send(2)
    stop = harness.loop.begin(harness.backend.stop())
    assert harness.backend.unready_reason() == "The service is shutting down."
    assert harness.value("purnet_ready") == 0
    assert isinstance(on_device.exception(), DrainingError)
    assert isinstance(queued.exception(), DrainingError)
    assert isinstance(harness.send(3).exception(), DrainingError)
    assert stop.done()
    assert not harness.workers.alive


def test_stopping_a_hung_worker_kills_it(harness):
    harness.workers.last.stopped = True
    stop = harness.loop.begin(harness.backend.stop())
    harness.loop.advance(10)
    assert stop.done()
    assert not harness.workers.alive


def test_stopping_while_the_model_loads_leaves_nothing(make_harness):
    harness = make_harness()
    harness.step()
    stop = harness.loop.begin(harness.backend.stop())
    harness.loop.advance(10)
    assert stop.done()
    assert not harness.workers.alive


def test_stopping_waits_for_a_worker_that_was_loading(make_harness):
    harness = make_harness()
    loading = harness.workers.last
    loading.unkillable = True
    stop = harness.loop.begin(harness.backend.stop())
    harness.loop.advance(EXIT_TIMEOUT_S)
    assert not stop.done()
    loading.unkillable = False
    loading.die(-signal.SIGKILL)
    harness.loop.settle()
    assert stop.done()


def test_stopping_waits_for_workers_that_were_sent_off_before(harness, tmp_path):
    other = Behaviour(name="other").save(tmp_path / "other.json")
    old = harness.workers.last
    old.stopped = True
    harness.reload(other)
    harness.bring_up()
    assert harness.backend.model.name == "other"
    assert old.alive
    stop = harness.loop.begin(harness.backend.stop())
    assert not stop.done()
    harness.loop.advance(2)
    assert stop.done()
    assert not harness.workers.alive


def test_stopping_waits_for_a_worker_that_brought_other_weights(harness):
    Behaviour(name="other").save(harness.checkpoint)
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    wrong = harness.workers.last
    wrong.step()
    harness.loop.settle()
    wrong.step()
    wrong.stopped = True
    harness.loop.settle()
    stop = harness.loop.begin(harness.backend.stop())
    harness.loop.advance(2)
    assert stop.done()
    assert not harness.workers.alive


def test_no_descriptor_is_left_open(make_harness):
    before = len(list(Path("/proc/self/fd").iterdir()))
    harness = make_harness()
    harness.bring_up()
    per_worker = len(list(Path("/proc/self/fd").iterdir())) - before
    for _ in range(5):
        call = harness.send(1)
        harness.workers.last.die(-signal.SIGKILL)
        harness.work()
        assert harness.numbers([call]) == [1]
    assert len(list(Path("/proc/self/fd").iterdir())) - before == per_worker


def test_a_restart_that_takes_long_makes_it_unready_until_it_is_done(harness):
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    slow = harness.workers.last
    slow.stopped = True
    harness.loop.advance(RESTART_GRACE_S - 1)
    assert harness.backend.unready_reason() is None
    harness.loop.advance(1)
    assert "takes long" in harness.backend.unready_reason()
    slow.stopped = False
    harness.bring_up()
    assert harness.backend.unready_reason() is None


def test_many_short_attempts_are_one_long_restart(harness):
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    harness.workers.last.stopped = True
    harness.loop.advance(RESTART_GRACE_S / 2)
    assert harness.backend.unready_reason() is None
    harness.workers.last.die(1)
    harness.loop.settle()
    harness.loop.advance(RESTART_GRACE_S / 2)
    assert "takes long" in harness.backend.unready_reason()


def test_other_weights_are_not_taken_by_accident(harness):
    before = harness.backend.model
    Behaviour(name="other").save(harness.checkpoint)
    harness.workers.last.die(-signal.SIGKILL)
    harness.work()
    assert "reload to take it" in harness.backend.unready_reason()
    assert harness.backend.model == before


def test_a_model_that_cannot_be_loaded_again_makes_it_unready_with_the_reason(harness):
    call = harness.send(1)
    harness.checkpoint.write_text("rubbish")
    harness.workers.last.die(-signal.SIGKILL)
    harness.work()
    assert harness.backend.unready_reason() == "fake.json is not a checkpoint."
    assert isinstance(call.exception(), NotReadyError)
    Behaviour().save(harness.checkpoint)
    harness.loop.advance(30)
    harness.bring_up()
    assert harness.backend.unready_reason() is None


def test_it_stays_ready_through_short_restarts_but_not_through_many_failures(harness):
    call = harness.send(1)
    for failure in range(FAILED_AFTER):
        assert harness.backend.unready_reason() is None, failure
        harness.workers.last.die(-signal.SIGKILL)
        harness.loop.advance(2**failure if failure < FAILED_AFTER - 1 else 0)
    assert f"{FAILED_AFTER} times in a row" in harness.backend.unready_reason()
    assert harness.value("purnet_ready") == 0
    assert isinstance(call.exception(), NotReadyError)
    assert isinstance(harness.send(2).exception(), NotReadyError)
    harness.loop.advance(60)
    harness.bring_up()
    assert harness.backend.unready_reason() is None
    call = harness.send(3)
    harness.work()
    assert harness.numbers([call]) == [3]
