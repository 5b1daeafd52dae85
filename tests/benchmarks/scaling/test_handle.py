"""The driver of a handle, before a backend that answers at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ray")

from benchmarks.scaling.engine import Sleep, load
from benchmarks.scaling.handle import send
from benchmarks.scaling.processes import Offer

from purnet.errors import CheckpointError
from purnet_serve.errors import WorkerError

PIXELS = np.zeros((16, 16, 3), np.uint8)


def backend(fail_every=0):
    seen = SimpleNamespace(asked=0, most=0, now=0)

    async def predict(pixels, *, deadline_s):
        seen.asked, seen.now = seen.asked + 1, seen.now + 1
        seen.most = max(seen.most, seen.now)
        await asyncio.sleep(0)
        seen.now -= 1
        if fail_every and seen.asked % fail_every == 0:
            raise WorkerError("lost")

    return SimpleNamespace(predict=predict, seen=seen)


def test_clients_that_never_pause_have_one_image_each_under_way():
    asked = backend()
    offered = asyncio.run(send(asked, PIXELS, Offer(3, None, 0.0, 0.05)))
    assert asked.seen.most == 3
    assert offered.images == asked.seen.asked
    assert len(offered.latencies_ms) <= offered.images
    assert offered.latencies_ms == sorted(offered.latencies_ms)


def test_a_rate_sends_what_is_due_whatever_comes_back():
    asked = backend(fail_every=2)
    offered = asyncio.run(send(asked, PIXELS, Offer(None, 1000.0, 0.0, 0.2, seed=1)))
    again = backend()
    asyncio.run(send(again, PIXELS, Offer(None, 1000.0, 0.0, 0.2, seed=1)))
    assert asked.seen.asked == again.seen.asked > 100
    assert offered.images + offered.failed == asked.seen.asked
    assert offered.failed == asked.seen.asked // 2


def test_the_sleeping_engine_is_loaded_from_its_file(tmp_path):
    predictor = load(Sleep(0.0, input_size=16).save(tmp_path / "sleep.json"))
    output = predictor.run(np.full((2, 16, 16, 3), 7, np.uint8))
    assert output.masks.shape == (2, 16, 16)
    assert output.finite.all()
    assert load(Sleep(0.5).save(tmp_path / "sleep.json")).measure(np.zeros((2, 1, 1, 3))) == 1.0
    with pytest.raises(CheckpointError):
        load(None)
