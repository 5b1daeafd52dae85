from __future__ import annotations

import signal
from dataclasses import asdict

import pytest
from fake_predictor import Act, Behaviour

from purnet_serve.errors import ReloadError


@pytest.fixture
def other(tmp_path):
    """Another checkpoint, which fits."""
    return Behaviour(name="other").save(tmp_path / "other.json")


def test_the_new_model_is_loaded_beside_the_old_and_swapped_between_batches(bench, other):
    old = bench.launch.last
    before = bench.backend.model
    reload = bench.reload(other)
    running, queued = bench.send(1), bench.send(2)
    new = bench.launch.last
    assert new is not old
    new.step()
    bench.loop.settle()
    new.step()
    bench.loop.settle()
    assert bench.backend.model == before, "the old model has a batch: nothing changes yet"
    assert not reload.done()
    bench.work()
    assert running.result().model == before
    assert queued.result().model == bench.backend.model == reload.result()
    assert bench.backend.model.name == "other"
    assert (old.begun, new.begun) == ([1], [1])
    assert bench.launch.alive == [new]


def test_the_configured_path_is_read_again(bench):
    Behaviour(name="trained on").save(bench.checkpoint)
    reload = bench.loop.begin(bench.backend.reload())
    bench.work()
    assert reload.result().name == "trained on"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Behaviour(input_size=32), "The checkpoint takes images of 32 pixels a side"),
        (Behaviour(fail_check=True), "The reference photo gives another mask."),
        (Behaviour(die_loading=True), "The worker exited with status 9."),
        (None, "fake.json is not a checkpoint."),
    ],
    ids=["input size", "self-check", "death", "corrupt"],
)
def test_a_bad_checkpoint_is_refused_and_nothing_changes(bench, tmp_path, bad, why):
    path = tmp_path / "bad.json"
    if bad is None:
        path.write_bytes(b"PK\x03\x04 not this")
    else:
        Behaviour(**{**asdict(bad), "die_loading": False}).save(path)
    old, before = bench.launch.last, bench.backend.model
    reload = bench.reload(path)
    calls = [bench.send(number) for number in range(20)]
    if bad is not None and bad.die_loading:
        bench.launch.last.die(9)
    bench.work()
    error = reload.exception()
    assert isinstance(error, ReloadError)
    assert why in str(error)
    assert bench.numbers(calls) == list(range(20))
    assert bench.backend.model == before
    assert bench.launch.alive == [old]


def test_the_version_flips_once_over_all_devices(make_bench, checkpoint, other):
    Behaviour(device="cuda").save(checkpoint)
    Behaviour(device="cuda", name="other").save(other)
    bench = make_bench(device="cuda:0,cuda:1")
    bench.bring_up()
    bench.loop.settle()
    slow, _ = bench.launch.processes
    first = bench.send(0)
    reload = bench.reload(other)
    answered = [first]
    slow.stopped = True
    for number in range(1, 5):
        answered.append(bench.send(number))
        bench.step()
    held_back = bench.send(5)
    bench.step()
    assert not reload.done(), "one device is still at work with the old model"
    slow.stopped = False
    bench.work()
    assert reload.done()
    assert held_back.result().model.name == "other"
    names = [call.result().model.name for call in answered]
    assert names == sorted(names)
    assert {info.model.name for info in (call.result() for call in answered[:1])} == {"fake"}


def test_a_worker_that_dies_during_the_swap_loses_no_image(bench, other):
    old = bench.launch.last
    call = bench.send(1)
    reload = bench.reload(other)
    new = bench.launch.last
    for _ in range(2):
        new.step()
        bench.loop.settle()
    old.die(-signal.SIGKILL)
    bench.work()
    assert reload.result().name == "other"
    assert bench.numbers([call]) == [1]
    assert call.result().model.name == "other"


def test_a_worker_that_is_restarting_is_overtaken_by_the_new_one(bench, other):
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    restarting = bench.launch.last
    restarting.stopped = True
    reload = bench.reload(other)
    bench.work()
    bench.loop.advance(10)
    assert reload.result().name == "other"
    assert not restarting.alive
    call = bench.send(1)
    bench.work()
    assert call.result().model.name == "other"


def test_a_reload_heals_a_service_whose_checkpoint_was_lost(bench, other):
    bench.checkpoint.unlink()
    bench.launch.last.die(-signal.SIGKILL)
    bench.work()
    assert bench.backend.unready_reason() is not None
    bench.reload(other)
    bench.work()
    assert bench.backend.unready_reason() is None


def test_a_crash_after_a_reload_brings_the_new_model_back(bench, other):
    bench.reload(other)
    bench.work()
    call = bench.send(1, Act.NOTHING)
    bench.launch.last.die(-signal.SIGKILL)
    bench.work()
    assert call.result().model.name == "other"


def test_two_reloads_at_once_happen_one_after_the_other(bench, other, tmp_path):
    third = Behaviour(name="third").save(tmp_path / "third.json")
    first = bench.reload(other)
    bench.step()
    second = bench.reload(third)
    bench.work()
    assert (first.result().name, second.result().name) == ("other", "third")
    assert len(bench.launch.alive) == 1


def test_stopping_during_a_reload_ends_the_reload(bench, other):
    reload = bench.reload(other)
    stop = bench.loop.begin(bench.backend.stop())
    bench.loop.advance(10)
    assert stop.done()
    assert isinstance(reload.exception(), ReloadError)
    assert not bench.launch.alive
    assert isinstance(bench.reload(other).exception(), ReloadError)


def test_a_cancelled_reload_leaves_no_worker(bench, other):
    old = bench.launch.last
    reload = bench.reload(other)
    reload.cancel()
    bench.loop.advance(10)
    assert reload.cancelled()
    assert bench.launch.alive == [old]


def test_a_new_worker_that_dies_before_its_turn_is_not_taken(bench, other):
    old, before = bench.launch.last, bench.backend.model
    call = bench.send(1)
    reload = bench.reload(other)
    new = bench.bring_up_last()
    assert not reload.done(), "the old worker has a batch"
    new.die(-signal.SIGSEGV)
    bench.work()
    assert "ended before it could take over" in str(reload.exception())
    assert bench.numbers([call]) == [1]
    assert bench.backend.model == before
    assert bench.launch.alive == [old]


def test_a_file_that_changes_between_two_devices_is_refused(make_bench, checkpoint, other):
    Behaviour(device="cuda").save(checkpoint)
    Behaviour(device="cuda", name="other").save(other)
    bench = make_bench(device="cuda:0,cuda:1")
    bench.bring_up()
    before = bench.backend.model
    reload = bench.reload(other)
    bench.bring_up_last()
    Behaviour(device="cuda", name="yet another").save(checkpoint)
    bench.work()
    assert "changed while it was being read" in str(reload.exception())
    assert bench.backend.model == before
    assert len(bench.launch.alive) == 2


def test_a_reload_waits_for_no_batch_of_a_worker_that_died(bench, other):
    call = bench.send(1)
    bench.launch.last.die(-signal.SIGKILL)
    bench.loop.settle()
    bench.launch.last.stopped = True
    reload = bench.reload(other)
    bench.work()
    assert reload.done()
    assert reload.result().name == "other"
    assert bench.numbers([call]) == [1]


def test_a_reload_waits_for_no_canary_of_a_worker_it_replaced(make_bench, checkpoint, other):
    Behaviour(device="cuda").save(checkpoint)
    Behaviour(device="cuda", name="other").save(other)
    bench = make_bench(device="cuda:0,cuda:1", canary_s=30, watchdog_s=100)
    bench.bring_up()
    bench.loop.settle()
    busy, idle = bench.launch.processes
    busy.stopped = idle.stopped = True
    call = bench.send(0)
    assert busy.inbox
    reload = bench.reload(other)
    bench.work()
    bench.loop.advance(30)
    assert idle.inbox, "the canary of a worker that is about to be replaced"
    busy.stopped = False
    bench.work()
    bench.loop.advance(2)
    assert reload.result().name == "other"
    assert bench.numbers([call]) == [0]
    Behaviour(device="cuda").save(checkpoint)
    again = bench.loop.begin(bench.backend.reload())
    bench.work()
    assert again.result().name == "fake"


def test_the_old_worker_is_gone_when_the_reload_is_over(bench, other):
    old = bench.launch.last
    old.stopped = True
    reload = bench.reload(other)
    bench.bring_up_last()
    assert bench.backend.model.name == "other"
    assert not reload.done()
    bench.loop.advance(2)
    assert reload.done()
    assert old not in bench.launch.alive
