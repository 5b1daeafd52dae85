from __future__ import annotations

import numpy as np
import pytest

from purnet_serve.errors import (
    DeadlineError,
    DrainingError,
    InternalError,
    NonFiniteError,
    NotReadyError,
    WorkerError,
)
from purnet_serve.inference.backend import ModelInfo, Prediction, Throughput
from purnet_serve.inference.ray.messages import (
    PROTOCOL,
    OtherVersionError,
    ReplicaState,
    pack_error,
    pack_prediction,
    pack_state,
    unpack_answer,
    unpack_pixels,
    unpack_state,
)

MODEL = ModelInfo("purnet-lite0", "a" * 64, 4, "cpu", "fake")


def test_a_prediction_crosses_whole() -> None:
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    sent = Prediction(mask, MODEL, queue_s=0.25, infer_s=0.5, batch_size=3)
    found = unpack_answer(pack_prediction(sent))
    assert isinstance(found, Prediction)
    np.testing.assert_array_equal(found.mask, mask)
    assert found.mask.flags.writeable
    assert (found.model, found.queue_s, found.infer_s, found.batch_size) == (MODEL, 0.25, 0.5, 3)


def test_only_plain_values_cross() -> None:
    message = pack_prediction(Prediction(np.zeros((4, 4), np.uint8), MODEL, 0.0, 0.0, 1))
    values = [*message[:-1], *message[-1]]  # type: ignore[misc]
    assert {type(value) for value in values} <= {str, bytes, int, float}


@pytest.mark.parametrize(
    "kind", [WorkerError, NonFiniteError, NotReadyError, DrainingError, DeadlineError]
)
def test_errors_of_a_replica_arrive_as_what_they_are(kind: type[WorkerError]) -> None:
    found = unpack_answer(pack_error(kind("It failed twice.")))
    assert type(found) is kind
    assert found.detail == "It failed twice."


def test_an_error_that_no_replica_has_is_internal() -> None:
    assert type(unpack_answer(("error", PROTOCOL, "body_too_large", "?"))) is InternalError


@pytest.mark.parametrize("message", [("version", PROTOCOL + 1), ("mask", PROTOCOL + 1, b"", 1, 2)])
def test_another_version_is_told_apart_whatever_it_says(message: tuple[object, ...]) -> None:
    with pytest.raises(OtherVersionError, match=f"protocol {PROTOCOL + 1}, this server {PROTOCOL}"):
        unpack_answer(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("message", [("mask", PROTOCOL), ("what", PROTOCOL, "a", "b")])
def test_what_is_no_answer_is_refused(message: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        unpack_answer(message)  # type: ignore[arg-type]


def test_pixels_know_their_size() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(unpack_pixels(pixels.tobytes()), pixels)
    with pytest.raises(ValueError, match="reshape"):
        unpack_pixels(bytes(47))


@pytest.mark.parametrize(
    "state",
    [
        ReplicaState("digest", MODEL, Throughput(0.1, 0.05, 2), None),
        ReplicaState(None, None, None, "The model is being loaded."),
    ],
)
def test_the_state_of_a_replica_crosses_whole(state: ReplicaState) -> None:
    assert unpack_state(pack_state(state)) == state


def test_the_state_of_another_version_is_told_apart() -> None:
    with pytest.raises(OtherVersionError):
        unpack_state({"protocol": PROTOCOL + 1, "anything": "else"})


def test_the_state_of_a_version_with_other_fields_is_told_apart() -> None:
    more = pack_state(ReplicaState(None, None, Throughput(0.1, 0.05, 2), None))
    more["throughput"]["warm"] = True
    less = {"protocol": PROTOCOL}
    for values in (more, less):
        with pytest.raises(OtherVersionError, match="cannot read"):
            unpack_state(values)
