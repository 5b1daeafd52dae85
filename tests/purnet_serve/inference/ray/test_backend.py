"""How a server sends images to replicas, and keeps an eye on them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from fake_tier import SIZE, model, state
from ray_backend import Harness

from purnet_serve.errors import (
    BusyError,
    DeadlineError,
    DrainingError,
    InternalError,
    NonFiniteError,
    NotReadyError,
    ReloadError,
    WorkerError,
)
from purnet_serve.inference.backend import Throughput
from purnet_serve.inference.ray.backend import GRACE_S, MIN_REFRESH_S, REFRESH_S
from purnet_serve.inference.ray.messages import PROTOCOL, Message, pack_error, pack_state
from purnet_serve.inference.ray.retries import MAX_TRIES
from purnet_serve.inference.ray.tier import (
    NoReplicaError,
    ReplicaLostError,
    TierFullError,
    UnreachableError,
)

# --- predicting


def test_pixels_and_the_time_that_is_left_are_sent_and_the_mask_comes_back(ready: Harness) -> None:
    ready.loop.advance(3)
    call = ready.send(9, deadline_s=20)
    ((left_s, pixels, _),) = ready.tier.calls
    assert left_s == 20
    assert pixels == bytes([9] * SIZE * SIZE * 3)
    ready.loop.advance(1)
    ready.answer()
    prediction = call.result()
    assert (prediction.mask == 9).all()
    assert prediction.model == model()
    # The fake replica says that it waited for 0.01 s and computed for 0.02 s: all else is the way.
    assert prediction.queue_s == pytest.approx(0.98)
    assert (prediction.infer_s, prediction.batch_size) == (0.02, 1)


@pytest.mark.parametrize(
    "pixels", [np.zeros((SIZE, SIZE, 3), np.float32), np.zeros((SIZE, 5, 3), np.uint8)]
)
def test_wrong_pixels_are_refused_here(ready: Harness, pixels: Any) -> None:
    call = ready.loop.begin(ready.backend.predict(pixels, deadline_s=1000))
    assert isinstance(call.exception(), ValueError)
    assert not ready.tier.calls


def test_pixels_decoded_for_a_model_of_another_size_are_to_be_sent_again(ready: Harness) -> None:
    pixels = np.zeros((SIZE + 1, SIZE + 1, 3), np.uint8)
    call = ready.loop.begin(ready.backend.predict(pixels, deadline_s=1000))
    assert isinstance(call.exception(), NotReadyError)
    assert not ready.tier.calls


def test_the_deadline_is_on_time_and_cancels_the_far_side(ready: Harness) -> None:
    call = ready.send(deadline_s=2)
    ready.loop.advance(1.9)
    assert not call.done()
    ready.loop.advance(0.1)
    assert isinstance(call.exception(), DeadlineError)
    assert ready.tier.calls[0][2].cancelled()
    assert ready.value("purnet_expired_total", place="device") == 1


def test_a_deadline_that_has_passed_sends_nothing(ready: Harness) -> None:
    assert isinstance(ready.send(deadline_s=0).exception(), DeadlineError)
    assert not ready.tier.calls
    assert ready.value("purnet_expired_total", place="queue") == 1


def test_a_client_that_leaves_cancels_the_call_to_the_replica(ready: Harness) -> None:
    call = ready.send()
    call.cancel()
    ready.loop.settle()
    assert call.cancelled()
    assert ready.tier.calls[0][2].cancelled()


def test_an_image_whose_replica_is_lost_is_tried_elsewhere_at_once(ready: Harness) -> None:
    ready.tier.outcomes += [ReplicaLostError("died")] * (MAX_TRIES - 1)
    call = ready.send(5)
    assert len(ready.tier.calls) == MAX_TRIES
    ready.answer()
    assert (call.result().mask == 5).all()


def test_an_image_that_takes_replicas_down_with_it_fails_alone(ready: Harness) -> None:
    other = ready.send(1)
    ready.tier.outcomes += [ReplicaLostError("died")] * MAX_TRIES
    error = ready.send(2).exception()
    assert isinstance(error, WorkerError)
    assert error.detail == f"{MAX_TRIES} replicas were lost with this image."
    ready.answer(0)
    assert (other.result().mask == 1).all()


def test_an_image_that_was_given_back_before_a_replica_was_lost_is_not_blamed(
    ready: Harness,
) -> None:
    given_back = [pack_error(DrainingError("stops"))] * (MAX_TRIES - 1)
    ready.tier.outcomes += [*given_back, ReplicaLostError("died")]
    call = ready.send()
    ready.loop.advance(1)
    assert len(ready.tier.calls) == MAX_TRIES
    assert type(call.exception()) is NotReadyError


@pytest.mark.parametrize("reason", [DrainingError("stops"), NotReadyError("no worker")])
def test_an_image_that_a_replica_gives_back_is_tried_elsewhere_a_moment_later(
    ready: Harness, reason: NotReadyError
) -> None:
    ready.tier.outcomes.append(pack_error(reason))
    call = ready.send(5)
    assert len(ready.tier.calls) == 1
    ready.loop.advance(1)
    assert len(ready.tier.calls) == 2
    assert ready.tier.calls[1][0] < ready.tier.calls[0][0], "less time is left"
    ready.answer()
    assert (call.result().mask == 5).all()


def test_what_every_replica_gives_back_is_answered_with_their_reason(ready: Harness) -> None:
    ready.tier.outcomes += [pack_error(NotReadyError("no worker"))] * MAX_TRIES
    call = ready.send()
    ready.loop.advance(1)
    error = call.exception()
    assert isinstance(error, NotReadyError)
    assert error.detail == "no worker"


@pytest.mark.parametrize("kind", [WorkerError, NonFiniteError, DeadlineError, InternalError])
def test_what_is_wrong_with_an_image_is_not_tried_again(ready: Harness, kind: Any) -> None:
    ready.tier.outcomes.append(pack_error(kind("why")))
    error = ready.send().exception()
    assert type(error) is kind
    assert error.detail == "why"
    assert len(ready.tier.calls) == 1


def test_a_replica_of_another_version_is_told_apart(ready: Harness) -> None:
    ready.tier.outcomes += [("version", PROTOCOL + 1)] * MAX_TRIES
    call = ready.send()
    ready.loop.advance(1)
    error = call.exception()
    assert isinstance(error, NotReadyError)
    assert f"protocol {PROTOCOL + 1}" in error.detail


def test_no_replica_is_not_ready(ready: Harness) -> None:
    ready.tier.outcomes.append(NoReplicaError("failed to deploy"))
    assert isinstance(ready.send().exception(), NotReadyError)


def test_full_replicas_are_429_with_the_measured_time(ready: Harness) -> None:
    waiting = [ready.send() for _ in range(19)]
    ready.tier.outcomes.append(TierFullError("full"))
    error = ready.send().exception()
    assert isinstance(error, BusyError)
    assert error.retry_after_s == 2, "20 images of 0.1 s each wait"
    for call in waiting:
        call.cancel()
    ready.loop.settle()


def test_what_the_devices_do_not_hold_is_queued(ready: Harness) -> None:
    calls = [ready.send() for _ in range(5)]
    assert ready.backend.throughput == Throughput(0.2, 0.1, 2)
    assert ready.backend.queued == 3
    assert ready.value("purnet_queue_depth") == 3
    assert ready.value("purnet_queue_in_flight") == 5
    ready.loop.advance(2)
    # The replicas say how long images wait; a call that is open for long may be a legal wait.
    assert ready.value("purnet_queue_oldest_seconds") == 0
    for number in range(5):
        ready.answer(number)
    assert all(call.done() for call in calls)
    assert ready.value("purnet_queue_in_flight") == 0


def test_stopping_fails_what_is_open_and_refuses_more(ready: Harness) -> None:
    call = ready.send()
    stop = ready.loop.begin(ready.backend.stop())
    assert stop.done()
    assert isinstance(call.exception(), DrainingError)
    assert ready.tier.calls[0][2].cancelled()
    assert isinstance(ready.send().exception(), DrainingError)
    assert ready.backend.unready_reason() == "The service is shutting down."
    assert ready.value("purnet_ready") == 0


def test_stopping_while_a_call_ends_at_its_deadline_leaves_nothing(ready: Harness) -> None:
    cancelled = asyncio.Event()

    async def cancel_slowly(left_s: float, pixels: bytes) -> Message:
        try:
            return await ready.loop.create_future()
        finally:
            await cancelled.wait()

    ready.tier.predict = cancel_slowly  # type: ignore[method-assign]
    call = ready.send(deadline_s=2)
    ready.loop.advance(2)
    assert not call.done()
    stop = ready.loop.begin(ready.backend.stop())
    stop.result()
    assert ready.tier.closed
    cancelled.set()
    ready.loop.settle()
    assert isinstance(call.exception(), DrainingError)


def test_stopping_while_it_starts_leaves_nothing(harness: Harness) -> None:
    harness.tier.after_deploy = []
    waiting = harness.start()
    assert not waiting.done()
    waiting.cancel()


# --- watching the replicas


def test_the_pace_follows_the_number_of_replicas(ready: Harness) -> None:
    ready.tier.states = [state()] * 4
    ready.loop.advance(REFRESH_S)
    assert ready.backend.throughput == Throughput(0.2, pytest.approx(0.025), 8)
    ready.tier.states = [state(), state(reason="no worker"), state(throughput=None)]
    ready.loop.advance(REFRESH_S)
    assert ready.backend.throughput == Throughput(0.2, pytest.approx(0.1), 2)


def test_a_lost_replica_is_looked_for_at_once(ready: Harness) -> None:
    refreshes = ready.tier.refreshes
    ready.tier.outcomes.append(ReplicaLostError("died"))
    ready.send()
    assert ready.tier.refreshes == refreshes + 1
    ready.tier.outcomes += [ReplicaLostError("died")] * MAX_TRIES
    ready.send()
    assert ready.tier.refreshes == refreshes + 1, "but not again and again"
    ready.loop.advance(MIN_REFRESH_S)
    assert ready.tier.refreshes == refreshes + 2


@pytest.mark.parametrize(
    ("unseen", "reason"),
    [
        (None, "There is no model replica."),
        (UnreachableError("no answer"), "No model replica says how it is."),
    ],
)
def test_replicas_that_are_gone_for_long_make_it_unready_until_one_is_back(
    ready: Harness, unseen: Exception | None, reason: str
) -> None:
    ready.tier.states, ready.tier.unseen = [], unseen
    ready.loop.advance(GRACE_S)
    assert ready.backend.unready_reason() is None
    ready.loop.advance(2 * REFRESH_S)
    assert ready.backend.unready_reason() == reason
    assert ready.value("purnet_ready") == 0
    assert isinstance(ready.send().exception(), NotReadyError)
    ready.tier.states, ready.tier.unseen = [state()], None
    ready.loop.advance(REFRESH_S)
    assert ready.backend.unready_reason() is None
    assert ready.value("purnet_ready") == 1


@pytest.mark.parametrize("unseen", [KeyError("model"), RuntimeError("Ray is not initialized")])
def test_whatever_goes_wrong_in_a_round_the_next_one_follows(
    ready: Harness, unseen: Exception
) -> None:
    ready.tier.unseen = unseen
    ready.loop.advance(REFRESH_S)
    ready.tier.states, ready.tier.unseen = [state("b")], None
    ready.loop.advance(REFRESH_S)
    assert ready.backend.model == model("b")


def test_a_state_with_fields_of_another_version_hides_no_other(ready: Harness) -> None:
    newer = pack_state(state("b"))
    newer["throughput"]["measured_on"] = "a device that this version does not know"
    ready.tier.states = [newer, state("c")]
    ready.loop.advance(REFRESH_S)
    assert ready.backend.model == model("c")


def test_replicas_too_busy_to_say_how_they_are_but_that_answer_are_not_gone(ready: Harness) -> None:
    ready.tier.unseen = UnreachableError("no answer within 5 s")
    for _ in range(20):
        ready.loop.advance(REFRESH_S)
        ready.send()
        ready.answer()
    assert ready.backend.unready_reason() is None


def test_the_model_is_that_of_most_replicas(ready: Harness) -> None:
    ready.tier.states = [state("b"), state("a"), state("b")]
    ready.loop.advance(REFRESH_S)
    assert ready.backend.model == model("b")


# --- reloading


def answers(*digits: str, refused: str | None = None) -> list[dict[str, Any]]:
    return [{**pack_state(state(digit)), "refused": refused} for digit in digits]


def test_a_reload_asks_one_replica_first_and_then_all_for_its_weights(ready: Harness) -> None:
    ready.tier.reload_answers += [answers("b"), answers("b", "b", "b")]
    reload = ready.loop.begin(ready.backend.reload())
    assert reload.result() == model("b")
    assert ready.backend.model == model("b")
    assert ready.tier.reloads == [(None, False), ("b" * 64, True)]


def test_a_reload_that_the_first_replica_refuses_asks_no_other(ready: Harness) -> None:
    ready.tier.reload_answers.append(answers("a", refused="fake.json is not a checkpoint."))
    reload = ready.loop.begin(ready.backend.reload())
    error = reload.exception()
    assert isinstance(error, ReloadError)
    assert str(error) == "fake.json is not a checkpoint."
    assert ready.backend.model == model("a")
    assert len(ready.tier.reloads) == 1


def test_a_reload_that_some_refuse_says_what_runs_now(ready: Harness) -> None:
    mixed = [*answers("b", "b"), *answers("a", refused="fake.json is not there.")]
    ready.tier.reload_answers += [answers("b"), mixed]
    error = ready.loop.begin(ready.backend.reload()).exception()
    assert isinstance(error, ReloadError)
    for part in ("2 run fake@bbbb", "1 run fake@aaaa", "fake.json is not there."):
        assert part in str(error)


@pytest.mark.parametrize("lost", [NoReplicaError("none"), UnreachableError("died")])
def test_a_reload_that_does_not_reach_all_is_refused(ready: Harness, lost: Exception) -> None:
    ready.tier.reload_answers += [answers("b"), lost]
    assert isinstance(ready.loop.begin(ready.backend.reload()).exception(), ReloadError)


def test_nothing_is_reloaded_before_the_start_or_after_the_stop(harness: Harness) -> None:
    assert isinstance(harness.loop.begin(harness.backend.reload()).exception(), ReloadError)
    harness.start()
    harness.loop.finish(harness.backend.stop())
    assert isinstance(harness.loop.begin(harness.backend.reload()).exception(), ReloadError)
    assert not harness.tier.reloads
