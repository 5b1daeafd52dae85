from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fake_clock import FakeClockLoop
from fake_predictor import image, number_in

from purnet_serve.errors import DeadlineError, DrainingError, NotReadyError
from purnet_serve.inference.backend import ModelInfo, Prediction
from purnet_serve.inference.batcher import Batch, Batcher, Ticket
from purnet_serve.observability.labels import DispatchReason, TicketLocation

MODEL = ModelInfo("fake", "0" * 64, 16, "cpu", "fake")
WAIT_S = 0.002
SOON_S = 30.0


@dataclass
class FakeExecutor:
    """Holds the batches it is given until the test answers them."""

    most: int = 16
    depth: int = 1
    up: bool = True
    submitted: list[Batch] = field(default_factory=list)
    held: list[Batch] = field(default_factory=list)

    @property
    def limit(self) -> int:
        return self.most if self.up and len(self.held) < self.depth else 0

    @property
    def batches(self) -> int:
        return len(self.held)

    def submit(self, batch: Batch) -> None:
        assert 0 < len(batch) <= self.limit
        assert all(ticket.live for ticket in batch.tickets)
        self.submitted.append(batch)
        self.held.append(batch)

    def answer(self, batcher: Batcher) -> None:
        batch = self.held.pop(0)
        for ticket in batch.tickets:
            ticket.resolve(Prediction(ticket.pixels[:, :, 0], MODEL, 0.0, 0.0, len(batch)))
        batcher.wake()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.submitted]

    @property
    def reasons(self) -> list[DispatchReason]:
        return [batch.reason for batch in self.submitted]

    @property
    def numbers(self) -> list[list[int]]:
        return [[_number(ticket) for ticket in batch.tickets] for batch in self.submitted]


@dataclass
class Counts:
    expirations: list[TicketLocation] = field(default_factory=list)
    cancellations: list[TicketLocation] = field(default_factory=list)

    def expired(self, place: TicketLocation) -> None:
        self.expirations.append(place)

    def cancelled(self, place: TicketLocation) -> None:
        self.cancellations.append(place)


def _number(ticket: Ticket) -> int:
    return number_in(ticket.pixels[0, 1].reshape(1, 3))


@pytest.fixture
def loop() -> Iterator[FakeClockLoop]:
    loop = FakeClockLoop()
    yield loop
    loop.advance(WAIT_S)
    assert not loop.timers, "no timer outlives what it was for"
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.settle()
    loop.close()
    assert not left, "every call must have ended"


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def batcher(loop, counts, executor) -> Batcher:
    return Batcher(loop, WAIT_S, counts, [executor])


@pytest.fixture
def send(loop, batcher):
    """Queue images, all in one turn of the loop."""

    def send(*numbers: int, deadline_s: float = SOON_S) -> list[asyncio.Task[Prediction]]:
        calls = [
            loop.create_task(batcher.predict(image(number), loop.now + deadline_s))
            for number in numbers
        ]
        loop.settle()
        return calls

    return send


def answer_all(loop, batcher, executor) -> None:
    while executor.held:
        executor.answer(batcher)
        loop.settle()


def test_a_lone_image_leaves_at_once(loop, batcher, executor, send):
    (call,) = send(7)
    assert executor.reasons == [DispatchReason.NOTHING_UPSTREAM]
    assert loop.now == 0
    answer_all(loop, batcher, executor)
    assert call.result().batch_size == 1


def test_what_comes_while_the_worker_is_busy_is_one_batch(loop, batcher, executor, send):
    send(0)
    for number in range(1, 16):
        send(number)
    assert executor.sizes == [1]
    answer_all(loop, batcher, executor)
    assert executor.sizes == [1, 15]
    assert executor.numbers[1] == list(range(1, 16))


def test_first_in_first_out_in_full_batches(loop, batcher, executor, send):
    calls = send(*range(40))
    answer_all(loop, batcher, executor)
    assert executor.sizes == [16, 16, 8]
    assert executor.reasons == [
        DispatchReason.FULL,
        DispatchReason.FULL,
        DispatchReason.NOTHING_UPSTREAM,
    ]
    assert [number for batch in executor.numbers for number in batch] == list(range(40))
    assert all(call.done() for call in calls)


def test_images_being_decoded_are_waited_for_but_not_for_long(loop, batcher, executor, send):
    batcher.expect(1)
    send(1)
    loop.advance(WAIT_S * 0.9)
    assert executor.sizes == []
    loop.advance(WAIT_S)
    assert executor.reasons == [DispatchReason.WAITED]
    answer_all(loop, batcher, executor)


def test_the_wait_ends_when_the_awaited_image_comes(loop, batcher, executor, send):
    async def decoded(number: int) -> Prediction:
        batcher.expect(-1)
        return await batcher.predict(image(number), SOON_S)

    batcher.expect(2)
    send(1)
    loop.begin(decoded(2))
    assert executor.numbers == []
    loop.begin(decoded(3))
    assert executor.numbers == [[1, 2, 3]]
    assert executor.reasons == [DispatchReason.NOTHING_UPSTREAM]
    answer_all(loop, batcher, executor)


def test_the_wait_ends_when_the_awaited_image_fails_to_decode(loop, batcher, executor, send):
    batcher.expect(1)
    send(1)
    batcher.expect(-1)
    loop.settle()
    assert executor.sizes == [1]
    answer_all(loop, batcher, executor)


def test_a_full_batch_does_not_wait(loop, batcher, executor, send):
    batcher.expect(5)
    send(*range(16))
    assert executor.reasons == [DispatchReason.FULL]
    answer_all(loop, batcher, executor)


def test_time_spent_behind_a_busy_worker_is_not_waited_again(loop, batcher, executor, send):
    send(0)
    batcher.expect(1)
    send(1)
    loop.advance(1)
    answer_all(loop, batcher, executor)
    assert executor.reasons[1] is DispatchReason.WAITED
    assert loop.now == 1


def test_a_deadline_is_on_time_while_the_device_is_busy(loop, batcher, executor, send, counts):
    send(0)
    (late,) = send(1, deadline_s=5)
    loop.advance(4.999)
    assert not late.done()
    loop.advance(0.001)
    assert isinstance(late.exception(), DeadlineError)
    assert counts.expirations == [TicketLocation.QUEUE]
    answer_all(loop, batcher, executor)
    assert executor.sizes == [1], "an expired image never reaches a device"


def test_a_deadline_is_on_time_for_an_image_on_the_device(loop, batcher, executor, send, counts):
    late, other = send(1, 2, deadline_s=5)
    loop.advance(5)
    assert isinstance(late.exception(), DeadlineError)
    assert isinstance(other.exception(), DeadlineError)
    assert counts.expirations == [TicketLocation.DEVICE, TicketLocation.DEVICE]
    answer_all(loop, batcher, executor)


def test_a_deadline_that_has_passed_is_not_queued(loop, batcher, executor, send, counts):
    (late,) = send(1, deadline_s=0)
    assert isinstance(late.exception(), DeadlineError)
    assert executor.sizes == []
    assert counts.expirations == [TicketLocation.QUEUE]


def test_an_image_that_expires_now_never_reaches_a_device(loop, batcher, executor, send, counts):
    send(0)
    (late,) = send(1, deadline_s=1)
    loop.now = 1.0  # the worker comes free in the turn in which the deadline passes
    answer_all(loop, batcher, executor)
    assert isinstance(late.exception(), DeadlineError)
    assert executor.sizes == [1]
    assert counts.expirations == [TicketLocation.QUEUE]


def test_a_client_gone_from_the_queue_never_reaches_a_device(loop, batcher, executor, send, counts):
    send(0)
    gone, stays = send(1, 2)
    gone.cancel()
    executor.answer(batcher)  # in the same turn: the ticket is still in the queue
    loop.settle()
    assert executor.numbers == [[0], [2]]
    assert counts.cancellations == [TicketLocation.QUEUE]
    answer_all(loop, batcher, executor)
    assert stays.result()


def test_a_client_gone_from_the_device_does_not_affect_its_batch(
    loop, batcher, executor, send, counts
):
    gone, stays = send(1, 2)
    gone.cancel()
    loop.settle()
    answer_all(loop, batcher, executor)
    assert counts.cancellations == [TicketLocation.DEVICE]
    assert stays.result().batch_size == 2


def test_a_busy_worker_with_a_free_buffer_gets_full_batches_only(loop, batcher, executor, send):
    executor.depth = 2
    send(0)
    send(*range(1, 16))
    assert executor.sizes == [1]
    send(16)
    assert executor.sizes == [1, 16]
    answer_all(loop, batcher, executor)


def test_the_idle_worker_is_served_first(loop, batcher, executor, send):
    executor.depth = 2
    other = FakeExecutor()
    batcher.executors.append(other)
    send(*range(16))
    send(*range(16, 32))
    assert (executor.sizes, other.sizes) == ([16], [16])
    answer_all(loop, batcher, executor)
    answer_all(loop, batcher, other)


def test_a_retried_image_keeps_its_place_and_runs_alone(loop, batcher, executor, send):
    calls = send(1, 2, 3)
    send(4, 5)
    lost = executor.held.pop()
    lost.tickets[0].alone = lost.tickets[1].alone = True
    batcher.requeue(lost.tickets)
    loop.settle()
    answer_all(loop, batcher, executor)
    assert executor.numbers[1:] == [[1], [2], [3, 4, 5]]
    assert all(call.result() for call in calls)


def test_an_image_that_runs_alone_ends_the_batch_before_it(loop, batcher, executor, send):
    send(1, 2, 3)
    lost = executor.held.pop()
    lost.tickets[1].alone = True
    batcher.requeue(lost.tickets)
    loop.settle()
    answer_all(loop, batcher, executor)
    assert executor.numbers[1:] == [[1], [2], [3]]


def test_a_health_check_is_a_batch_of_its_own_and_counts_nobody(
    loop, batcher, executor, send, counts
):
    pixels = image(9)

    def check(deadline_s):
        return loop.begin(batcher.predict(pixels, deadline_s, health_check=True))

    send(0)
    before, answered, after = send(1), check(100.0), send(2)
    late, gone = check(1.0), check(100.0)
    loop.advance(1)
    gone.cancel()
    loop.settle()
    assert isinstance(late.exception(), DeadlineError)
    answer_all(loop, batcher, executor)
    assert executor.numbers == [[0], [1], [9], [2]]
    assert [batch.health_check for batch in executor.submitted] == [False, False, True, False]
    assert all(call.result() for call in (*before, answered, *after))
    assert (counts.expirations, counts.cancellations) == ([], [])


def test_a_client_that_leaves_in_the_turn_its_time_is_over_counts_once(
    loop, batcher, executor, send, counts
):
    send(0)
    (call,) = send(1, deadline_s=1)
    loop.call_at(1.0, call.cancel)
    loop.advance(1)
    assert call.cancelled()
    assert (counts.expirations, counts.cancellations) == ([TicketLocation.QUEUE], [])
    answer_all(loop, batcher, executor)


def test_batches_leave_again_after_a_pause(loop, batcher, executor, send):
    batcher.pause()
    send(1, 2)
    assert executor.sizes == []
    batcher.resume()
    loop.settle()
    assert executor.sizes == [2]
    answer_all(loop, batcher, executor)


def test_closing_fails_everything_and_refuses_more(loop, batcher, executor, send):
    on_device, queued = *send(1), *send(2)
    batcher.close("over")
    loop.settle()
    (refused,) = send(3)
    for call in (on_device, queued, refused):
        assert isinstance(call.exception(), DrainingError)
    answer_all(loop, batcher, executor)  # too late for every ticket


def test_failing_the_queue_leaves_the_device_alone(loop, batcher, executor, send):
    on_device, queued = *send(1), *send(2)
    batcher.fail_queued("no device")
    loop.settle()
    assert isinstance(queued.exception(), NotReadyError)
    answer_all(loop, batcher, executor)
    assert on_device.result()


def test_depth_and_age_of_the_queue(loop, batcher, executor, send):
    send(0)
    assert (batcher.queued, batcher.in_flight, batcher.oldest_s) == (0, 1, 0.0)
    (gone,) = send(1)
    loop.advance(3)
    send(2)
    loop.advance(2)
    assert (batcher.queued, batcher.in_flight, batcher.oldest_s) == (2, 3, 5.0)
    gone.cancel()
    loop.settle()
    assert (batcher.queued, batcher.in_flight, batcher.oldest_s) == (1, 2, 2.0)
    answer_all(loop, batcher, executor)
    assert (batcher.queued, batcher.in_flight, batcher.oldest_s) == (0, 0, 0.0)
