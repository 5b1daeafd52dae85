from __future__ import annotations

import os

import numpy as np
import pytest
from fake_predictor import FACTORY, Act, Behaviour, image, number_in

from purnet_serve.inference import shared_memory as shared
from purnet_serve.inference.protocol import (
    Done,
    EngineFailed,
    Load,
    Loaded,
    LoadFailed,
    OutOfMemory,
    ProtocolError,
    Ready,
    Run,
    Warmup,
)
from purnet_serve.inference.worker_main import WorkerLoop

WARMUP = Warmup(buffers=1, max_batch=4, input_size=16)


@pytest.fixture
def segment():
    fd = shared.create()
    shared.reserve(fd, buffers=1, max_batch=4, input_size=16)
    yield fd
    os.close(fd)


@pytest.fixture
def worker_loop(segment, checkpoint):
    worker_loop = WorkerLoop(segment)
    assert isinstance(worker_loop.handle(Load(FACTORY, str(checkpoint), "cpu", 2)), Loaded)
    assert isinstance(worker_loop.handle(WARMUP), Ready)
    return worker_loop


@pytest.fixture
def batches(segment):
    batches = shared.SharedBatches(segment, buffers=1, max_batch=4, input_size=16)
    yield batches
    batches.close()


def test_a_load_reports_what_was_loaded(segment, checkpoint):
    loaded = WorkerLoop(segment).handle(Load(FACTORY, str(checkpoint), "cpu", 2))
    assert isinstance(loaded, Loaded)
    assert (loaded.name, loaded.input_size, loaded.device) == ("fake", 16, "cpu")
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize(
    ("factory", "behaviour", "why"),
    [
        (FACTORY, Behaviour(refuse="no such device"), "no such device"),
        (FACTORY, Behaviour(fail_check=True), "The reference photo gives another mask."),
        ("no_such_module:load", Behaviour(), "ModuleNotFoundError: No module named"),
        ("fake_predictor:nothing", Behaviour(), "AttributeError"),
    ],
)
def test_a_load_that_fails_says_why(segment, checkpoint, factory, behaviour, why):
    behaviour.save(checkpoint)
    refused = WorkerLoop(segment).handle(Load(factory, str(checkpoint), "cpu", 2))
    assert isinstance(refused, LoadFailed)
    assert why in refused.detail


def test_the_predictor_gets_its_number_of_threads(worker_loop):
    assert worker_loop._predictor.threads == 2


def warmed_up(segment, checkpoint, warmup: Warmup, **behaviour: object) -> Ready:
    Behaviour(**behaviour).save(checkpoint)
    worker_loop = WorkerLoop(segment)
    worker_loop.handle(Load(FACTORY, str(checkpoint), "cpu", 2))
    ready = worker_loop.handle(warmup)
    assert isinstance(ready, Ready)
    return ready


@pytest.mark.parametrize(
    ("behaviour", "sizes"),
    [
        ({"batch_s": 0.01, "image_s": 0.001}, [1, 2, 4]),
        ({"batch_s": 0.01, "image_s": 0.001, "most": 3}, [1, 2]),
        ({"batch_s": 0.01, "image_s": 0.021}, [1, 2]),  # 31, 26 and 23.5 ms an image
        ({"batch_s": 0.0, "image_s": 0.02}, [1]),
    ],
    ids=["all pay", "four do not fit", "four gain little", "none pays"],
)
def test_warm_up_ends_at_the_largest_batch_that_fits_and_pays(
    segment, checkpoint, behaviour, sizes
):
    ready = warmed_up(segment, checkpoint, WARMUP, **behaviour)
    assert ready.sizes == sizes
    assert ready.seconds == [
        pytest.approx(behaviour["batch_s"] + behaviour["image_s"] * size) for size in sizes
    ]
    assert ready.streams == 1


def test_the_last_step_to_the_largest_batch_may_be_shorter(segment, checkpoint):
    ready = warmed_up(segment, checkpoint, Warmup(1, 3, 16), batch_s=0.01, image_s=0.01)
    assert ready.sizes == [1, 2, 3]


@pytest.mark.parametrize(("most", "streams"), [(1000, 4), (3, 2), (1, 1)])
def test_streams_are_measured_together_and_no_more_than_fit(segment, checkpoint, most, streams):
    ready = warmed_up(segment, checkpoint, Warmup(4, 1, 16), streams=4, most=most)
    assert (ready.streams, ready.sizes) == (streams, [1])
    assert ready.seconds == [pytest.approx(0.01 + 0.001 * streams)]


def test_no_room_for_one_image_is_refused(segment, checkpoint):
    Behaviour(most=0).save(checkpoint)
    worker_loop = WorkerLoop(segment)
    worker_loop.handle(Load(FACTORY, str(checkpoint), "cpu", 2))
    assert isinstance(worker_loop.handle(WARMUP), LoadFailed)


def test_a_batch_is_answered_in_its_buffer(worker_loop, batches):
    for slot in range(3):
        act = Act.NON_FINITE if slot == 1 else Act.NOTHING
        batches.pixels[0, slot] = image(slot + 10, act)
    done = worker_loop.handle(Run(number=5, buffer=0, images=3))
    assert isinstance(done, Done)
    assert done.number == 5
    assert done.finite == [True, False, True]
    assert [number_in(batches.masks[0, slot]) for slot in (0, 2)] == [10, 12]
    assert done.resident_bytes > 1 << 20
    assert done.device_bytes == 4096


def test_out_of_memory_is_reported_and_survived(worker_loop, batches):
    batches.pixels[0, :4] = image(1, Act.CROWDED)
    assert worker_loop.handle(Run(1, 0, 4)) == OutOfMemory(1)
    assert isinstance(worker_loop.handle(Run(2, 0, 2)), Done)


def test_an_exception_is_reported_as_engine_failed(worker_loop, batches):
    batches.pixels[0, 0] = image(1, Act.RAISE)
    fault = worker_loop.handle(Run(1, 0, 1))
    assert isinstance(fault, EngineFailed)
    assert "illegal memory access" in fault.detail


def test_masks_of_another_type_are_reported_as_engine_failed(worker_loop, batches, monkeypatch):
    from fake_predictor import EngineOutput, FakePredictor

    floats = EngineOutput(np.zeros((1, 16, 16)), np.ones(1, np.bool_))
    monkeypatch.setattr(FakePredictor, "run", lambda self, pixels: floats)
    assert isinstance(worker_loop.handle(Run(1, 0, 1)), EngineFailed)


@pytest.mark.parametrize("message", [WARMUP, Run(1, 0, 1), OutOfMemory(1)])
def test_messages_out_of_order_are_not_answered(segment, message):
    worker_loop = WorkerLoop(segment)
    if isinstance(message, Warmup):
        assert isinstance(worker_loop.handle(message), LoadFailed)
    else:
        with pytest.raises(ProtocolError):
            worker_loop.handle(message)
