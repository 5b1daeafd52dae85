from __future__ import annotations

import signal
from dataclasses import asdict

import pytest
from fake_predictor import Act, Behaviour

from purnet_serve.errors import ReloadError
from purnet_serve.inference.worker_handle import load


@pytest.fixture
def other(tmp_path):
    """Another checkpoint, which fits."""
    return Behaviour(name="other").save(tmp_path / "other.json")


def test_the_new_model_is_loaded_beside_the_old_and_swapped_between_batches(harness, other):
    old = harness.workers.last
    before = harness.backend.model
    reload = harness.reload(other)
    running, queued = harness.send(1), harness.send(2)
    new = harness.workers.last
    assert new is not old
    new.step()
    harness.loop.settle()
    new.step()
    harness.loop.settle()
    assert harness.backend.model == before, "the old model has a batch: nothing changes yet"
    assert not reload.done()
    harness.work()
    assert running.result().model == before
    assert queued.result().model == harness.backend.model == reload.result()
    assert harness.backend.model.name == "other"
    assert (old.begun, new.begun) == ([1], [1])
    assert harness.workers.alive == [new]


def test_the_configured_path_is_read_again(harness):
    Behaviour(name="trained on").save(harness.checkpoint)
    reload = harness.loop.begin(harness.backend.reload())
    harness.work()
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
def test_a_bad_checkpoint_is_refused_and_nothing_changes(harness, tmp_path, bad, why):
    path = tmp_path / "bad.json"
    if bad is None:
        path.write_bytes(b"PK\x03\x04 not this")
    else:
        Behaviour(**{**asdict(bad), "die_loading": False}).save(path)
    old, before = harness.workers.last, harness.backend.model
    reload = harness.reload(path)
    calls = [harness.send(number) for number in range(20)]
    if bad is not None and bad.die_loading:
        harness.workers.last.die(9)
    harness.work()
    error = reload.exception()
    assert isinstance(error, ReloadError)
    assert why in str(error)
    assert harness.numbers(calls) == list(range(20))
    assert harness.backend.model == before
    assert harness.workers.alive == [old]


def test_the_version_flips_once_over_all_devices(make_harness, checkpoint, other):
    Behaviour(device="cuda").save(checkpoint)
    Behaviour(device="cuda", name="other").save(other)
    harness = make_harness(device="cuda:0,cuda:1")
    harness.bring_up()
    harness.loop.settle()
    slow, _ = harness.workers.processes
    first = harness.send(0)
    reload = harness.reload(other)
    answered = [first]
    slow.stopped = True
    for number in range(1, 5):
        answered.append(harness.send(number))
        harness.step()
    held_back = harness.send(5)
    harness.step()
    assert not reload.done(), "one device is still at work with the old model"
    slow.stopped = False
    harness.work()
    assert reload.done()
    assert held_back.result().model.name == "other"
    names = [call.result().model.name for call in answered]
    assert names == sorted(names)
    assert {info.model.name for info in (call.result() for call in answered[:1])} == {"fake"}


def test_a_worker_that_dies_during_the_swap_loses_no_image(harness, other):
    old = harness.workers.last
    call = harness.send(1)
    reload = harness.reload(other)
    new = harness.workers.last
    for _ in range(2):
        new.step()
        harness.loop.settle()
    old.die(-signal.SIGKILL)
    harness.work()
    assert reload.result().name == "other"
    assert harness.numbers([call]) == [1]
    assert call.result().model.name == "other"


def test_a_reload_replaces_a_worker_that_is_restarting(harness, other):
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    restarting = harness.workers.last
    restarting.stopped = True
    reload = harness.reload(other)
    harness.work()
    harness.loop.advance(10)
    assert reload.result().name == "other"
    assert not restarting.alive
    call = harness.send(1)
    harness.work()
    assert call.result().model.name == "other"


def test_a_reload_makes_a_service_ready_whose_checkpoint_was_lost(harness, other):
    harness.checkpoint.unlink()
    harness.workers.last.die(-signal.SIGKILL)
    harness.work()
    assert harness.backend.unready_reason() is not None
    harness.reload(other)
    harness.work()
    assert harness.backend.unready_reason() is None


def test_a_crash_after_a_reload_brings_the_new_model_back(harness, other):
    harness.reload(other)
    harness.work()
    call = harness.send(1, Act.NOTHING)
    harness.workers.last.die(-signal.SIGKILL)
    harness.work()
    assert call.result().model.name == "other"


def test_two_reloads_at_once_happen_one_after_the_other(harness, other, tmp_path):
    third = Behaviour(name="third").save(tmp_path / "third.json")
    first = harness.reload(other)
    harness.step()
    second = harness.reload(third)
    harness.work()
    assert (first.result().name, second.result().name) == ("other", "third")
    assert len(harness.workers.alive) == 1


def test_stopping_during_a_reload_ends_the_reload(harness, other):
    reload = harness.reload(other)
    stop = harness.loop.begin(harness.backend.stop())
    harness.loop.advance(10)
    assert stop.done()
    assert isinstance(reload.exception(), ReloadError)
    assert not harness.workers.alive
    assert isinstance(harness.reload(other).exception(), ReloadError)


def test_a_cancelled_reload_leaves_no_worker(harness, other):
    old = harness.workers.last
    reload = harness.reload(other)
    reload.cancel()
    harness.loop.advance(10)
    assert reload.cancelled()
    assert harness.workers.alive == [old]


def test_a_new_worker_that_dies_before_its_turn_is_not_taken(harness, other):
    old, before = harness.workers.last, harness.backend.model
    call = harness.send(1)
    reload = harness.reload(other)
    new = harness.bring_up_last()
    assert not reload.done(), "the old worker has a batch"
    new.die(-signal.SIGSEGV)
    harness.work()
    assert "ended before it could take over" in str(reload.exception())
    assert harness.numbers([call]) == [1]
    assert harness.backend.model == before
    assert harness.workers.alive == [old]


def test_a_file_that_changes_between_two_devices_is_refused(make_harness, checkpoint, other):
    Behaviour(device="cuda").save(checkpoint)
    Behaviour(device="cuda", name="other").save(other)
    harness = make_harness(device="cuda:0,cuda:1")
    harness.bring_up()
    before = harness.backend.model
    reload = harness.reload(other)
    harness.bring_up_last()
    Behaviour(device="cuda", name="yet another").save(checkpoint)
    harness.work()
    assert "changed while it was being read" in str(reload.exception())
    assert harness.backend.model == before
    assert len(harness.workers.alive) == 2


def test_a_reload_waits_for_no_batch_of_a_worker_that_died(harness, other):
    call = harness.send(1)
    harness.workers.last.die(-signal.SIGKILL)
    harness.loop.settle()
    harness.workers.last.stopped = True
    reload = harness.reload(other)
    harness.work()
    assert reload.done()
    assert reload.result().name == "other"
    assert harness.numbers([call]) == [1]


def test_a_reload_waits_for_no_health_check_of_a_worker_it_replaced(
    make_harness, checkpoint, other
):
    Behaviour(device="cuda").save(checkpoint)
    Behaviour(device="cuda", name="other").save(other)
    harness = make_harness(device="cuda:0,cuda:1", health_check_s=30, watchdog_s=100)
    harness.bring_up()
    harness.loop.settle()
    busy, idle = harness.workers.processes
    busy.stopped = idle.stopped = True
    call = harness.send(0)
    assert busy.inbox
    reload = harness.reload(other)
    harness.work()
    harness.loop.advance(30)
    assert idle.inbox, "the health check of a worker that is about to be replaced"
    busy.stopped = False
    harness.work()
    harness.loop.advance(2)
    assert reload.result().name == "other"
    assert harness.numbers([call]) == [0]
    Behaviour(device="cuda").save(checkpoint)
    again = harness.loop.begin(harness.backend.reload())
    harness.work()
    assert again.result().name == "fake"


def test_the_old_worker_is_gone_when_the_reload_is_over(harness, other):
    old = harness.workers.last
    old.stopped = True
    reload = harness.reload(other)
    harness.bring_up_last()
    assert harness.backend.model.name == "other"
    assert not reload.done()
    harness.loop.advance(2)
    assert reload.done()
    assert old not in harness.workers.alive


def test_stopping_in_the_turn_of_the_swap_leaves_no_worker(harness):
    (device,) = harness.backend._devices
    loaded = harness.loop.begin(load(device.spec))
    harness.bring_up_last()

    async def swap_and_stop() -> None:
        device.adopt(loaded.result())
        await harness.backend.stop()

    harness.loop.finish(swap_and_stop())
    assert not harness.workers.alive
