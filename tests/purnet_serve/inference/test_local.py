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
from purnet_serve.inference.protocol import Loaded, encode
from purnet_serve.inference.supervisor import HOPELESS_AFTER, PATIENCE_S
from purnet_serve.inference.worker_handle import PARTING_S


@pytest.mark.parametrize(
    "behaviour",
    [Behaviour(refuse="There is no device cuda:7 here."), Behaviour(fail_check=True)],
)
def test_a_start_that_is_refused_says_why(make_bench, checkpoint, behaviour):
    behaviour.save(checkpoint)
    bench = make_bench()
    waiting = bench.loop.begin(bench.backend.wait_ready())
    assert bench.backend.unready_reason() == "The model is being loaded."
    bench.step()
    error = waiting.exception()
    assert isinstance(error, StartupError)
    assert str(error) in (
        "There is no device cuda:7 here.",
        "The reference photo gives another mask.",
    )


@pytest.mark.parametrize(
    ("asked", "found"), [("cuda:0", "cpu"), ("cuda:1", "cuda:0")], ids=["cpu", "another gpu"]
)
def test_a_demanded_device_is_never_replaced_by_another(make_bench, checkpoint, asked, found):
    Behaviour(device=found).save(checkpoint)
    bench = make_bench(device=asked)
    waiting = bench.loop.begin(bench.backend.wait_ready())
    bench.step()
    assert str(waiting.exception()) == f"The model was asked onto {asked} and came up on {found}."


def test_what_was_found_automatically_stays(make_bench, checkpoint):
    Behaviour(device="cuda:0").save(checkpoint)
    bench = make_bench()
    bench.bring_up()
    model = bench.backend.model
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    on_cpu = Loaded(model.name, model.sha256, model.input_size, "cpu", "fake")
    bench.launch.last.say(encode(on_cpu))
    bench.loop.settle()
    assert bench.backend.unready_reason() == "The model was asked onto cuda:0 and came up on cpu."


def test_a_worker_that_never_comes_up_ends_the_start(make_bench):
    bench = make_bench()
    waiting = bench.loop.begin(bench.backend.wait_ready())
    for _ in range(HOPELESS_AFTER):
        bench.launch.last.die(1)
        bench.loop.advance(30)
    assert isinstance(waiting.exception(), StartupError)


def test_one_worker_per_device(make_bench, checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    bench = make_bench(device="cuda:0,cuda:1")
    waiting = bench.loop.begin(bench.backend.wait_ready())
    first, second = bench.launch.processes
    for process in (first, first, second, second):
        bench.loop.settle()
        assert not waiting.done()
        process.step()
    bench.loop.settle()
    assert waiting.done()
    calls = [bench.send(1), bench.send(2)]
    bench.work()
    assert [process.begun for process in bench.launch.processes] == [[1], [1]]
    assert bench.numbers(calls) == [1, 2]


def test_one_worker_down_leaves_the_service_ready(make_bench, checkpoint):
    Behaviour(device="cuda").save(checkpoint)
    bench = make_bench(device="cuda:0,cuda:1")
    bench.bring_up()
    checkpoint.write_text("rubbish")
    bench.launch.processes[0].die(-signal.SIGKILL)
    bench.work()
    assert bench.backend.unready_reason() is None
    call = bench.send(1)
    bench.work()
    assert bench.numbers([call]) == [1]


def test_stopping_fails_what_is_open_and_refuses_more(bench):
    on_device, queued = bench.send(1), bench.send(2)
    stop = bench.loop.begin(bench.backend.stop())
    assert bench.backend.unready_reason() == "The service is shutting down."
    assert bench.value("purnet_ready") == 0
    assert isinstance(on_device.exception(), DrainingError)
    assert isinstance(queued.exception(), DrainingError)
    assert isinstance(bench.send(3).exception(), DrainingError)
    assert stop.done()
    assert not bench.launch.alive


def test_stopping_a_hung_worker_kills_it(bench):
    bench.launch.last.stopped = True
    stop = bench.loop.begin(bench.backend.stop())
    bench.loop.advance(10)
    assert stop.done()
    assert not bench.launch.alive


def test_stopping_while_the_model_loads_leaves_nothing(make_bench):
    bench = make_bench()
    bench.step()
    stop = bench.loop.begin(bench.backend.stop())
    bench.loop.advance(10)
    assert stop.done()
    assert not bench.launch.alive


def test_stopping_waits_for_a_worker_that_was_loading(make_bench):
    bench = make_bench()
    loading = bench.launch.last
    loading.unkillable = True
    stop = bench.loop.begin(bench.backend.stop())
    bench.loop.advance(PARTING_S)
    assert not stop.done()
    loading.unkillable = False
    loading.die(-signal.SIGKILL)
    bench.loop.settle()
    assert stop.done()


def test_stopping_waits_for_workers_that_were_sent_off_before(bench, tmp_path):
    other = Behaviour(name="other").save(tmp_path / "other.json")
    old = bench.launch.last
    old.stopped = True
    bench.reload(other)
    bench.bring_up()
    assert bench.backend.model.name == "other"
    assert old.alive
    stop = bench.loop.begin(bench.backend.stop())
    assert not stop.done()
    bench.loop.advance(2)
    assert stop.done()
    assert not bench.launch.alive


def test_stopping_waits_for_a_worker_that_brought_other_weights(bench):
    Behaviour(name="other").save(bench.checkpoint)
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    wrong = bench.launch.last
    wrong.step()
    bench.loop.settle()
    wrong.step()
    wrong.stopped = True
    bench.loop.settle()
    stop = bench.loop.begin(bench.backend.stop())
    bench.loop.advance(2)
    assert stop.done()
    assert not bench.launch.alive


def test_no_descriptor_is_left_open(make_bench):
    before = len(list(Path("/proc/self/fd").iterdir()))
    bench = make_bench()
    bench.bring_up()
    per_worker = len(list(Path("/proc/self/fd").iterdir())) - before
    for _ in range(5):
        call = bench.send(1)
        bench.launch.last.die(-signal.SIGKILL)
        bench.work()
        assert bench.numbers([call]) == [1]
    assert len(list(Path("/proc/self/fd").iterdir())) - before == per_worker


def test_a_restart_that_takes_long_makes_it_unready_until_it_is_done(bench):
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    slow = bench.launch.last
    slow.stopped = True
    bench.loop.advance(PATIENCE_S - 1)
    assert bench.backend.unready_reason() is None
    bench.loop.advance(1)
    assert "takes long" in bench.backend.unready_reason()
    slow.stopped = False
    bench.bring_up()
    assert bench.backend.unready_reason() is None


def test_many_short_attempts_are_one_long_restart(bench):
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    bench.launch.last.stopped = True
    bench.loop.advance(PATIENCE_S / 2)
    assert bench.backend.unready_reason() is None
    bench.launch.last.die(1)
    bench.loop.settle()
    bench.loop.advance(PATIENCE_S / 2)
    assert "takes long" in bench.backend.unready_reason()


def test_other_weights_are_not_taken_by_accident(bench):
    before = bench.backend.model
    Behaviour(name="other").save(bench.checkpoint)
    bench.launch.last.die(-signal.SIGKILL)
    bench.work()
    assert "reload to take it" in bench.backend.unready_reason()
    assert bench.backend.model == before


def test_a_model_that_cannot_be_loaded_again_makes_it_unready_with_the_reason(bench):
    call = bench.send(1)
    bench.checkpoint.write_text("rubbish")
    bench.launch.last.die(-signal.SIGKILL)
    bench.work()
    assert bench.backend.unready_reason() == "fake.json is not a checkpoint."
    assert isinstance(call.exception(), NotReadyError)
    Behaviour().save(bench.checkpoint)
    bench.loop.advance(30)
    bench.bring_up()
    assert bench.backend.unready_reason() is None


def test_a_short_restart_is_not_unreadiness_but_a_hopeless_one_is(bench):
    call = bench.send(1)
    for strike in range(HOPELESS_AFTER):
        assert bench.backend.unready_reason() is None, strike
        bench.launch.last.die(-signal.SIGKILL)
        bench.loop.advance(2**strike if strike < HOPELESS_AFTER - 1 else 0)
    assert f"{HOPELESS_AFTER} times in a row" in bench.backend.unready_reason()
    assert bench.value("purnet_ready") == 0
    assert isinstance(call.exception(), NotReadyError)
    assert isinstance(bench.send(2).exception(), NotReadyError)
    bench.loop.advance(60)
    bench.bring_up()
    assert bench.backend.unready_reason() is None
    call = bench.send(3)
    bench.work()
    assert bench.numbers([call]) == [3]
