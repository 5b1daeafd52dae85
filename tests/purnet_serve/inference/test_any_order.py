"""Events in any order: each image gets one answer, its own, and nothing leaks.

Batcher, supervisors, protocol, worker loop and shared memory are real; engine, clock and worker
processes are fake.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from fake_predictor import Act, Behaviour, number_in
from harness import BackendHarness
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from purnet_serve.errors import (
    DeadlineError,
    DrainingError,
    NonFiniteError,
    NotReadyError,
    ReloadError,
    WorkerError,
)
from purnet_serve.inference.backend import ModelInfo
from purnet_serve.inference.supervisor import FAILED_AFTER, RESTART_GRACE_S
from purnet_serve.observability.labels import FailureKind

HEALTH_CHECK = 128 << 16 | 128 << 8 | 128
"""The number a plain grey image seems to have."""
HARMLESS = (Act.NOTHING, Act.CROWDED)


@dataclass
class Sent:
    call: asyncio.Task
    act: Act
    deadline_s: float
    begun: int = 0
    """How often it went to a worker."""

    @property
    def cancelled(self) -> bool:
        return self.call.cancelled()

    @property
    def error(self) -> BaseException | None:
        return self.call.exception() if self.call.done() and not self.cancelled else None

    @property
    def answered(self) -> bool:
        return self.call.done() and not self.cancelled and self.error is None


class AnyOrder(RuleBasedStateMachine):
    """Two GPUs, which take batches, one running and one waiting."""

    devices = "cuda:0,cuda:1"
    kind = Behaviour(device="cuda")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.descriptors = len(list(Path("/proc/self/fd").iterdir()))
        checkpoint = self.kind.save(root / "fake.json")
        self.candidates = {
            "same": self.kind.save(root / "same.json"),
            "other": replace(self.kind, name="other").save(root / "other.json"),
            "size": replace(self.kind, input_size=32).save(root / "size.json"),
            "missing": root / "missing.json",
        }
        self.harness = BackendHarness(checkpoint, device=self.devices, max_batch=4)
        self.harness.workers.on_batch = self.on_batch
        self.harness.start()
        self.harness.work()
        self.sent: dict[int, Sent] = {}
        self.upstream = 0
        self.reloads: list[asyncio.Task] = []
        self.one_operator = asyncio.Lock()
        self.stop: asyncio.Task | None = None

    def on_batch(self, numbers: list[int]) -> None:
        """A batch goes to a worker."""
        if numbers == [HEALTH_CHECK]:
            return
        assert numbers == sorted(numbers), "first in, first out"
        for number in numbers:
            sent = self.sent[number]
            assert not sent.call.done(), "no client waits for this image any more"
            assert self.harness.loop.now < sent.deadline_s
            sent.begun += 1

    @property
    def may_be_unready(self) -> bool:
        """Whether a worker may have been refused, failed often, or have taken long to come back."""
        found = self.harness.series()
        ends = [found["purnet_failures_total", (kind,)] for kind in FailureKind]
        refused = found["purnet_failures_total", ("refused",)] > 0
        long = sum(ends) > 0 and self.harness.loop.now >= RESTART_GRACE_S
        return refused or sum(ends) >= FAILED_AFTER or long

    # --- clients

    @rule(
        act=st.sampled_from([Act.NOTHING] * 4 + [Act.CROWDED, Act.RAISE, Act.NON_FINITE]),
        timeout_s=st.sampled_from([0.5, 3, 1000]),
        images=st.integers(1, 6),
    )
    def send(self, act: Act, timeout_s: float, images: int) -> None:
        loop = self.harness.loop
        for _ in range(images):
            number = len(self.sent) + 1
            deadline_s = loop.now + timeout_s
            call = loop.create_task(self.harness.predict(number, act, deadline_s))
            self.sent[number] = Sent(call, act, deadline_s)
        loop.settle()

    @precondition(lambda self: any(not sent.call.done() for sent in self.sent.values()))
    @rule(data=st.data())
    def client_goes_away(self, data: st.DataObject) -> None:
        waiting = [sent for sent in self.sent.values() if not sent.call.done()]
        data.draw(st.sampled_from(waiting)).call.cancel()
        self.harness.loop.settle()

    @rule(images=st.sampled_from([-1, 1]))
    def decoding(self, images: int) -> None:
        if self.upstream + images >= 0:
            self.upstream += images
            self.harness.backend.expect(images)

    @rule(seconds=st.sampled_from([0.001, 0.002, 1, 6, 31]))
    def time_passes(self, seconds: float) -> None:
        self.harness.loop.advance(seconds)

    # --- workers

    @rule()
    def workers_work(self) -> None:
        self.harness.step()

    @precondition(lambda self: self.harness.workers.alive)
    @rule(
        data=st.data(),
        event=st.sampled_from(["exit", "signal", "pipe", "stop", "go on", "nonsense"]),
    )
    def something_happens_to_a_worker(self, data: st.DataObject, event: str) -> None:
        process = data.draw(st.sampled_from(self.harness.workers.alive))
        match event:
            case "exit":
                process.die(os.EX_SOFTWARE)
            case "signal":
                process.die(-signal.SIGKILL)
            case "pipe":
                process.lose_pipe()
            case "stop":
                process.stopped = True
            case "go on":
                process.stopped = False
            case "nonsense":
                process.say(b"nonsense\n")
        self.harness.loop.settle()

    # --- operators

    @precondition(lambda self: self.stop is None and len(self.reloads) < 5)
    @rule(name=st.sampled_from(["same", "other", "size", "missing"]))
    def reload(self, name: str) -> None:
        self.reloads.append(self.harness.loop.begin(self.change_model(self.candidates[name])))

    async def change_model(self, candidate: Path) -> ModelInfo:
        """An operator puts another file in place, and puts the old one back if it is refused."""
        configured = self.harness.checkpoint
        async with self.one_operator:
            before = configured.read_bytes()
            if candidate.exists():
                configured.write_bytes(candidate.read_bytes())
            else:
                configured.unlink()
            try:
                return await self.harness.backend.reload()
            except ReloadError:
                configured.write_bytes(before)
                raise

    @precondition(lambda self: self.stop is None and len(self.sent) > 20)
    @rule(drain_s=st.sampled_from([0, 2, 100]))
    def shut_down(self, drain_s: float) -> None:
        self.stop = self.harness.loop.begin(self.drain_and_stop(drain_s))

    async def drain_and_stop(self, drain_s: float) -> None:
        """As the HTTP server does: what was accepted gets `drain_s` seconds."""
        if open_calls := [sent.call for sent in self.sent.values() if not sent.call.done()]:
            await asyncio.wait(open_calls, timeout=drain_s)
        await self.harness.backend.stop()

    # --- what always holds

    @invariant()
    def everyone_gets_their_own_answer_on_time(self) -> None:
        now = self.harness.loop.now
        for number, sent in self.sent.items():
            if not sent.call.done():
                assert now < sent.deadline_s, "a deadline is on time"
            elif sent.answered:
                assert number_in(sent.call.result().mask) == number
                assert sent.act in HARMLESS
            elif isinstance(sent.error, DeadlineError):
                assert now >= sent.deadline_s
            elif isinstance(sent.error, NonFiniteError):
                assert sent.act is Act.NON_FINITE
            elif isinstance(sent.error, DrainingError):
                assert self.stop is not None
            elif isinstance(sent.error, NotReadyError):
                assert self.may_be_unready
            elif isinstance(sent.error, WorkerError):
                assert sent.begun >= 2, "it was retried"
            else:
                assert sent.cancelled

    @invariant()
    def counters_add_up(self) -> None:
        outcomes, found = self.harness.executions(), self.harness.series()
        calls = self.sent.values()
        assert outcomes.get("mask", 0) == sum(sent.answered for sent in calls)
        for outcome, error in (("non_finite", NonFiniteError), ("failed", WorkerError)):
            assert outcomes.get(outcome, 0) == sum(isinstance(s.error, error) for s in calls)
        for series, matches in (
            ("purnet_expired_total", lambda s: isinstance(s.error, DeadlineError)),
            ("purnet_cancelled_total", lambda s: s.cancelled),
        ):
            counted = found[series, ("queue",)] + found[series, ("device",)]
            assert counted == sum(map(matches, calls))
        in_flight = sum(not sent.call.done() for sent in calls)
        assert found["purnet_queue_in_flight", ()] == in_flight
        assert found["purnet_queue_depth", ()] <= in_flight, "every queued image has a client"

    @invariant()
    def an_image_that_is_retried_has_no_neighbour(self) -> None:
        for device in self.harness.backend._devices:
            batches = () if device.worker is None else device.worker.in_flight
            if any(ticket.alone for batch in batches for ticket in batch.tickets):
                assert [len(batch) for batch in batches] == [1]

    @invariant()
    def workers_are_bounded(self) -> None:
        waiting_to_go = 2  # by a reload: one beside each that serves
        assert len([p for p in self.harness.workers.alive if not p.stopped]) <= 2 + waiting_to_go

    def teardown(self) -> None:
        harness = self.harness
        try:
            for process in harness.workers.alive:
                process.stopped = False
            harness.backend.expect(-self.upstream)
            if self.stop is None:
                for _ in range(10):
                    harness.work()
                    harness.loop.advance(31)
                harness.work()
                assert all(sent.call.done() for sent in self.sent.values())
                assert all(reload.done() for reload in self.reloads)
                self.everyone_gets_their_own_answer_on_time()
                self.counters_add_up()
        finally:
            harness.close()
            self.folder.cleanup()
        # Asking for the error also tells asyncio that somebody has seen it.
        assert all(sent.answered or sent.cancelled or sent.error for sent in self.sent.values())
        for reload in self.reloads:
            assert isinstance(reload.exception(), ReloadError | None)
        assert len(list(Path("/proc/self/fd").iterdir())) == self.descriptors


class AnyOrderOfStreams(AnyOrder):
    """One CPU, which runs three single images at the same time and answers them in any order."""

    devices = "cpu"
    kind = Behaviour(streams=3)

    @precondition(lambda self: any(len(p.inbox) > 1 for p in self.harness.workers.alive))
    @rule(data=st.data())
    def a_later_image_is_done_first(self, data: st.DataObject) -> None:
        (process,) = (p for p in self.harness.workers.alive if len(p.inbox) > 1)
        process.step(data.draw(st.integers(1, len(process.inbox) - 1)))
        self.harness.loop.settle()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderOfStreams = AnyOrderOfStreams.TestCase
TestAnyOrder.settings = TestAnyOrderOfStreams.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    # Without shrinking: a failure prints its steps, and minutes of shrinking hide it.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
