from __future__ import annotations

import os

import numpy as np
import pytest
from fake_predictor import FACTORY, Act, Behaviour, image, number_in

from purnet_serve.inference import shared_memory as shared
from purnet_serve.inference.protocol import (
    Attach,
    Done,
    Fault,
    Load,
    Loaded,
    OutOfMemory,
    ProtocolError,
    Ready,
    Refused,
    Run,
)
from purnet_serve.inference.worker_main import Servant

ATTACH = Attach(banks=1, max_batch=4, input_size=16)


@pytest.fixture
def segment():
    fd = shared.create()
    shared.reserve(fd, banks=1, max_batch=4, input_size=16)
    yield fd
    os.close(fd)


@pytest.fixture
def servant(segment, checkpoint):
    servant = Servant(segment)
    assert isinstance(servant.handle(Load(FACTORY, str(checkpoint), "cpu")), Loaded)
    assert isinstance(servant.handle(ATTACH), Ready)
    return servant


@pytest.fixture
def batches(segment):
    batches = shared.SharedBatches(segment, banks=1, max_batch=4, input_size=16)
    yield batches
    batches.close()


def test_a_load_tells_what_was_loaded(segment, checkpoint):
    loaded = Servant(segment).handle(Load(FACTORY, str(checkpoint), "cpu"))
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
def test_a_load_that_fails_is_refused_in_words(segment, checkpoint, factory, behaviour, why):
    behaviour.save(checkpoint)
    refused = Servant(segment).handle(Load(factory, str(checkpoint), "cpu"))
    assert isinstance(refused, Refused)
    assert why in refused.detail


def test_warm_up_stops_at_the_largest_batch_that_fits(segment, checkpoint):
    Behaviour(most=3).save(checkpoint)
    servant = Servant(segment)
    servant.handle(Load(FACTORY, str(checkpoint), "cpu"))
    ready = servant.handle(ATTACH)
    assert isinstance(ready, Ready)
    assert ready.max_batch == 3
    assert ready.slowest_s > 0


def test_no_room_for_one_image_is_refused(segment, checkpoint):
    Behaviour(most=0).save(checkpoint)
    servant = Servant(segment)
    servant.handle(Load(FACTORY, str(checkpoint), "cpu"))
    assert isinstance(servant.handle(ATTACH), Refused)


def test_a_batch_is_answered_in_its_bank(servant, batches):
    for slot in range(3):
        act = Act.NON_FINITE if slot == 1 else Act.NOTHING
        batches.pixels[0, slot] = image(slot + 10, act)
    done = servant.handle(Run(number=5, bank=0, images=3))
    assert isinstance(done, Done)
    assert done.number == 5
    assert done.finite == [True, False, True]
    assert [number_in(batches.masks[0, slot]) for slot in (0, 2)] == [10, 12]
    assert done.resident_bytes > 1 << 20
    assert done.device_bytes == 4096


def test_out_of_memory_is_told_and_survived(servant, batches):
    batches.pixels[0, :4] = image(1, Act.CROWDED)
    assert servant.handle(Run(1, 0, 4)) == OutOfMemory(1)
    assert isinstance(servant.handle(Run(2, 0, 2)), Done)


def test_an_exception_is_a_fault(servant, batches):
    batches.pixels[0, 0] = image(1, Act.RAISE)
    fault = servant.handle(Run(1, 0, 1))
    assert isinstance(fault, Fault)
    assert "illegal memory access" in fault.detail


def test_masks_of_another_kind_are_a_fault(servant, batches, monkeypatch):
    from fake_predictor import EngineOutput, FakePredictor

    floats = EngineOutput(np.zeros((1, 16, 16)), np.ones(1, np.bool_))
    monkeypatch.setattr(FakePredictor, "run", lambda self, pixels: floats)
    assert isinstance(servant.handle(Run(1, 0, 1)), Fault)


@pytest.mark.parametrize("message", [ATTACH, Run(1, 0, 1), OutOfMemory(1)])
def test_messages_out_of_order_are_not_answered(segment, message):
    servant = Servant(segment)
    if isinstance(message, Attach):
        assert isinstance(servant.handle(message), Refused)
    else:
        with pytest.raises(ProtocolError):
            servant.handle(message)
