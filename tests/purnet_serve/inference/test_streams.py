"""A device that runs several single images at the same time: who runs beside whom, and when."""

from __future__ import annotations

import signal

import pytest
from fake_predictor import Act, Behaviour
from fake_workers import FakeProcess
from harness import BackendHarness

from purnet_serve.errors import WorkerError
from purnet_serve.inference.limits import RECOVERY_BATCHES
from purnet_serve.observability.labels import FailureKind

STREAMS = 3


@pytest.fixture
def harness(make_harness, checkpoint) -> BackendHarness:
    """One worker of three streams, up and idle."""
    Behaviour(streams=STREAMS).save(checkpoint)
    harness = make_harness()
    harness.bring_up()
    return harness


@pytest.fixture
def worker(harness) -> FakeProcess:
    return harness.workers.last


def out_of_memory(harness: BackendHarness, position: int = 0) -> None:
    """Have the last worker say so of a batch it was sent."""
    worker = harness.workers.last
    number = list(harness.backend._devices[0].worker._in_flight)[position]
    del worker.inbox[position]
    worker.say(b'{"kind": "OutOfMemory", "number": %d}\n' % number)
    harness.loop.settle()


def test_as_many_single_images_run_as_there_are_streams(harness, worker):
    calls = [harness.send(number) for number in range(8)]
    assert len(worker.inbox) == STREAMS
    assert harness.value("purnet_queue_depth") == 8 - STREAMS
    harness.work()
    assert harness.numbers(calls) == list(range(8))
    assert worker.begun == [1] * 8
    assert harness.value("purnet_max_batch", device="cpu") == 1
    assert harness.value("purnet_streams", device="cpu") == STREAMS


@pytest.mark.parametrize("fit", [1, 2])
def test_no_image_is_sent_ahead_where_fewer_run_than_the_engine_has_streams(
    make_harness, checkpoint, fit
):
    Behaviour(streams=4, most=fit).save(checkpoint)
    harness = make_harness()
    harness.bring_up()
    calls = [harness.send(number) for number in range(4)]
    assert len(harness.workers.last.inbox) == fit
    assert harness.backend.throughput.concurrency == fit
    harness.work()
    assert harness.numbers(calls) == list(range(4))


def test_an_image_is_answered_when_it_is_done_and_its_stream_is_fed_at_once(harness, worker):
    calls = [harness.send(number) for number in range(STREAMS + 2)]
    worker.step(1)
    harness.loop.settle()
    assert [call.done() for call in calls] == [False, True, False, False, False]
    assert len(worker.inbox) == STREAMS
    worker.step(2)
    harness.loop.settle()
    assert [call.done() for call in calls] == [False, True, False, True, False]
    harness.work()
    assert harness.numbers(calls) == list(range(STREAMS + 2))
    assert calls[0].result().batch_size == 1


def test_no_image_waits_for_one_that_is_being_decoded(harness, worker):
    harness.backend.expect(1)
    call = harness.send(1)
    assert len(worker.inbox) == 1
    harness.backend.expect(-1)
    harness.work()
    assert harness.numbers([call]) == [1]


def test_every_image_that_a_dead_worker_ran_is_retried_with_no_neighbour(harness, worker):
    calls = [harness.send(number) for number in range(STREAMS + 2)]
    worker.die(-signal.SIGSEGV)
    harness.bring_up()
    successor = harness.workers.last
    for _ in range(STREAMS):
        assert len(successor.inbox) == 1, "nothing runs beside an image that is retried"
        successor.step()
        harness.loop.settle()
    assert len(successor.inbox) == 2, "those that had not begun run beside each other"
    harness.work()
    assert harness.numbers(calls) == list(range(STREAMS + 2))
    assert harness.executions() == {"retried": STREAMS, "mask": STREAMS + 2}


def test_an_image_that_ends_workers_fails_alone(harness):
    calls = [harness.send(n, Act.RAISE if n == 4 else Act.NOTHING) for n in range(9)]
    harness.work()
    assert harness.numbers(calls) == [n if n != 4 else WorkerError for n in range(9)]
    assert harness.executions()["failed"] == 1
    assert harness.backend.unready_reason() is None


def test_an_image_that_must_run_alone_waits_for_an_idle_device(harness, worker):
    (device,) = harness.backend._devices
    calls = [harness.send(number) for number in range(STREAMS)]
    batch = device.worker.in_flight[0]
    batch.tickets[0].alone = True
    assert device.limit == 0
    worker.step()
    harness.loop.settle()
    assert device.limit == 1
    ticket = device.worker.in_flight[0].tickets[0]
    ticket.alone = True
    harness.backend._batcher.requeue([ticket])
    harness.loop.settle()
    assert harness.value("purnet_queue_depth") == 1, "another image runs"
    harness.work()
    assert harness.numbers(calls) == list(range(STREAMS))


def test_each_image_has_its_own_watchdog_time(harness, worker):
    first = harness.send(1)
    harness.loop.advance(3)
    second = harness.send(2)
    worker.step(1)
    harness.loop.settle()
    third = harness.send(3)
    harness.loop.advance(1.99)
    assert worker.alive
    harness.loop.advance(0.01)
    assert not worker.alive, "the first image has run for 5 s"
    harness.work()
    assert harness.numbers([first, second, third]) == [1, 2, 3]
    assert harness.value("purnet_failures_total", kind="hang") == 1


def test_the_watchdog_of_an_answered_image_is_over(harness, worker):
    first = harness.send(1)
    harness.loop.advance(3)
    second = harness.send(2)
    worker.step()
    harness.loop.settle()
    harness.loop.advance(4)
    assert worker.alive
    harness.work()
    assert harness.numbers([first, second]) == [1, 2]


def test_an_answer_for_an_image_that_does_not_run_breaks_the_protocol(harness, worker):
    call = harness.send(1)
    done = b'{"kind": "Done", "number": 2, "finite": [true], "infer_s": 0.5,'
    worker.say(done + b' "resident_bytes": 0, "device_bytes": 0}\n')
    harness.work()
    assert not worker.alive
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="protocol") == 1


def test_out_of_memory_halves_the_streams_in_use_and_loses_no_image(harness, worker):
    calls = [harness.send(number) for number in range(5)]
    out_of_memory(harness, position=1)
    assert harness.value("purnet_streams", device="cpu") == 1
    assert harness.value("purnet_queue_depth") == 3, "no stream is fed until one image runs"
    harness.work()
    assert harness.numbers(calls) == list(range(5))
    assert worker.alive
    assert harness.executions() == {"retried": 1, "mask": 5}


def test_out_of_memory_of_a_single_image_with_no_neighbour_restarts_the_worker(harness, worker):
    call = harness.send(1)
    out_of_memory(harness)
    harness.work()
    assert not worker.alive
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_failures_total", kind="out_of_memory") == 1


def test_a_stream_comes_back_after_many_images(harness):
    for number in range(2):
        harness.send(number)
    out_of_memory(harness)
    harness.work()
    assert harness.value("purnet_streams", device="cpu") == 1
    for number in range(RECOVERY_BATCHES):
        harness.send(number)
        harness.work()
    assert harness.value("purnet_streams", device="cpu") == 2


def test_a_health_check_without_room_beside_others_is_no_fault_of_the_worker(harness, worker):
    harness.loop.advance(30)
    call = harness.send(1)
    out_of_memory(harness)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert worker.alive
    assert harness.executions() == {"mask": 1}


def test_a_health_check_beside_images_is_no_suspect(harness, worker):
    harness.loop.advance(30)
    call = harness.send(1)
    worker.die(-signal.SIGKILL)
    harness.work()
    assert harness.numbers([call]) == [1]
    assert harness.value("purnet_health_checks_total", result="failed") == 1
    assert harness.executions() == {"retried": 1, "mask": 1}


def test_a_reload_waits_until_every_stream_is_idle(harness, worker, tmp_path):
    other = Behaviour(streams=STREAMS, name="other").save(tmp_path / "other.json")
    calls = [harness.send(number) for number in range(STREAMS + 1)]
    reload = harness.reload(other)
    harness.bring_up_last()
    for _ in range(STREAMS):
        assert not reload.done()
        worker.step()
        harness.loop.settle()
    harness.work()
    assert reload.result().name == "other"
    assert harness.numbers(calls) == list(range(STREAMS + 1))
    names = [call.result().model.name for call in calls]
    assert names == ["fake"] * STREAMS + ["other"]


def test_failures_of_images_alone_do_not_make_it_unready(harness):
    for number in range(8):
        call = harness.send(number, Act.RAISE)
        harness.work()
        assert harness.numbers([call]) == [WorkerError]
    assert harness.backend.unready_reason() is None
    assert harness.value("purnet_failures_total", kind=FailureKind.EXCEPTION) == 16
