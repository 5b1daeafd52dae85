"""The request scheduler on a clock that the test moves, and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fake_backend import FakeBackend
from fake_clock import FakeClockLoop
from live_service import MakeLive
from photos import encoded, scene
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers

from purnet_serve.errors import DeadlineError, WouldBeLateError
from purnet_serve.http.request import RequestContext
from purnet_serve.http.scheduler import RequestScheduler
from purnet_serve.inference.backend import Throughput
from purnet_serve.observability.inference_metrics import InferenceMetrics

PHOTO = encoded(scene())
THROUGHPUT = Throughput(latency_s=1.0, interval_s=0.5, concurrency=2)
TARGET_S = 20.0


class Service:
    """A scheduler, and requests whose work ends when the test says so."""

    def __init__(self, loop: FakeClockLoop, throughput: Throughput | None = THROUGHPUT) -> None:
        self.loop = loop
        self.throughput = throughput
        self.registry: CollectorRegistry
        self.scheduler = self.make_scheduler(decode_threads=0)
        self.started: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    def make_scheduler(self, decode_threads: int) -> RequestScheduler:
        self.registry = CollectorRegistry()
        metrics = InferenceMetrics(self.registry)
        return RequestScheduler(TARGET_S, lambda: self.throughput, decode_threads, metrics)

    def counted(self, name: str) -> float | None:
        """How many waited for a slot, of those that this counter counts."""
        return self.registry.get_sample_value(f"purnet_{name}_total", {"place": "slot"})

    def request(self, name: str, timeout_s: float | None = None) -> RequestContext:
        """A request that is accepted. Raises why it is not."""
        now = self.loop.now
        deadline = now + (30.0 if timeout_s is None else timeout_s)
        request = RequestContext(name, "POST", "/v1/mask", Headers(), now, deadline)

        async def accept() -> None:
            self.scheduler.accept(request, timeout_s)

        self.loop.finish(accept())
        return request

    def begin(self, request: RequestContext) -> asyncio.Task[None]:
        self.ends[request.id] = asyncio.Event()
        return self.loop.begin(self._work(request))

    def send(self, name: str, timeout_s: float | None = None) -> asyncio.Task[None]:
        return self.begin(self.request(name, timeout_s))

    def end(self, name: str) -> None:
        self.ends[name].set()
        self.loop.settle()

    async def _work(self, request: RequestContext) -> None:
        async with self.scheduler.slot(request):
            self.started.append(request.id)
            await self.ends[request.id].wait()


@pytest.fixture
def loop() -> Iterator[FakeClockLoop]:
    loop = FakeClockLoop()
    yield loop
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.settle()
    assert not loop.timers
    loop.close()


@pytest.fixture
def service(loop: FakeClockLoop) -> Service:
    return Service(loop)


def test_as_many_work_as_there_are_slots_and_the_earliest_due_is_next(
    loop: FakeClockLoop, service: Service
) -> None:
    service.send("first")
    service.send("second")
    service.send("without a header")
    service.send("urgent", 10.0)
    assert service.started == ["first", "second"]
    service.end("second")
    assert service.started == ["first", "second", "urgent"]
    service.end("urgent")
    assert service.started[3:] == ["without a header"]


def test_each_thread_that_decodes_is_a_slot(loop: FakeClockLoop) -> None:
    service = Service(loop)
    service.scheduler = service.make_scheduler(decode_threads=3)
    for number in range(6):
        service.send(str(number))
    assert len(service.started) == 5


def test_a_refusal_says_the_estimate_the_time_allowed_and_when_to_come_again(
    service: Service,
) -> None:
    for number in range(6):
        service.send(str(number))
    with pytest.raises(WouldBeLateError) as refused:
        service.request("hasty", 1.0)
    error = refused.value
    # 1 s for itself, half a second for each of the two that work, a fifth more to be sure. The
    # others are due later.
    assert (error.limit, error.actual) == (1.0, 2.4)
    assert error.retry_after_s == 2
    assert error.detail == "The answer would take about 2.40 s; this request allows 1.00 s."
    service.request("patient", 2.5)


def test_without_a_header_the_target_is_promised(service: Service) -> None:
    in_time = 32  # the last of them after 1.2 * (1 s + 31 * 0.5 s)
    for number in range(in_time):
        service.send(str(number))
    with pytest.raises(WouldBeLateError) as refused:
        service.request("one more")
    assert (refused.value.limit, refused.value.actual) == (TARGET_S, pytest.approx(20.4))
    service.request("one that says it may wait", 28.0)


def test_a_deadline_that_passes_in_the_queue_is_on_time(
    loop: FakeClockLoop, service: Service
) -> None:
    service.send("first")
    service.send("second")
    waits = service.send("waits", 4.0)
    loop.advance(3.99)
    assert not waits.done()
    loop.advance(0.01)
    assert isinstance(waits.exception(), DeadlineError)
    assert service.scheduler.schedule.waiting == 0
    assert (service.counted("expired"), service.counted("cancelled")) == (1, 0)


def test_a_request_without_enough_time_is_dropped_before_any_work(
    loop: FakeClockLoop, service: Service
) -> None:
    for name in ("first", "second"):
        service.send(name)
    lost, other = service.send("lost", 4.0), service.send("other")
    loop.advance(3.5)
    service.end("second")
    assert isinstance(lost.exception(), DeadlineError)
    assert "Too little" in str(lost.exception())
    assert service.counted("expired") == 1
    assert service.started == ["first", "second", "other"], "its place is given on"
    assert not other.done()


def test_slots_of_clients_that_leave_are_given_to_others(
    loop: FakeClockLoop, service: Service
) -> None:
    works, _ = service.send("works"), service.send("second")
    waits, next_one = service.send("waits"), service.send("next")
    uploads = service.request("uploads")
    assert service.scheduler.schedule.ahead == 5
    waits.cancel()
    loop.settle()

    async def gone() -> None:
        service.scheduler.release(uploads)
        service.scheduler.release(uploads)

    loop.finish(gone())
    assert service.scheduler.schedule.ahead == 3
    works.cancel()
    loop.settle()
    assert service.started == ["works", "second", "next"]
    assert not next_one.done()
    # The first was at work, the last one's upload was not complete.
    assert (service.counted("expired"), service.counted("cancelled")) == (0, 1)


def test_a_failure_teaches_nothing_and_an_answer_does(
    loop: FakeClockLoop, service: Service
) -> None:
    failing = service.send("fails")
    loop.advance(30)
    failing.cancel()
    loop.settle()
    rate = service.scheduler.schedule.rate
    assert rate is not None
    assert rate.latency_s == THROUGHPUT.latency_s
    service.send("works")
    loop.advance(3)
    service.end("works")
    assert rate.latency_s > THROUGHPUT.latency_s


def test_before_the_first_load_everybody_is_accepted(loop: FakeClockLoop) -> None:
    service = Service(loop, throughput=None)
    for number in range(50):
        service.send(str(number), 0.1)
    assert len(service.started) == 50
    loop.advance(0.05)
    service.end("0")
    service.throughput = THROUGHPUT
    with pytest.raises(WouldBeLateError):
        service.request("more", 0.1)


def test_a_device_that_is_gone_takes_its_slots_with_it(
    loop: FakeClockLoop, service: Service
) -> None:
    service.send("first")
    service.send("second")
    service.throughput = Throughput(1.0, 1.0, concurrency=1)
    service.send("third")
    service.end("first")
    assert service.started == ["first", "second"]
    service.end("second")
    assert service.started == ["first", "second", "third"]


# --- over HTTP


@pytest.mark.anyio
async def test_over_http_the_refusal_is_a_problem_and_counted(make_live: MakeLive) -> None:
    backend = FakeBackend()
    backend.throughput = Throughput(latency_s=1.0, interval_s=0.5, concurrency=1)
    live = await make_live(backend, decode_threads=1, encode_threads=1, target_latency_s=4)
    backend.gate.clear()
    first = asyncio.create_task(live.client.post("/v1/mask", content=PHOTO))
    await backend.one_arrived()
    refused = await live.client.post("/v1/mask", content=PHOTO, headers={"X-Timeout-Ms": "1000"})
    assert refused.status_code == 429
    problem = refused.json()
    assert (problem["code"], problem["limit"]) == ("would_be_late", pytest.approx(1.0, abs=0.2))
    assert problem["actual"] == pytest.approx(1.8)
    assert refused.headers["retry-after"] == "1"
    assert live.sample("purnet_errors_total", code="would_be_late") == 1
    assert live.sample("purnet_wait_estimate_seconds") == pytest.approx(1.8)
    assert live.sample("purnet_requests_waiting") == 0
    assert len(backend.seen) == 1, "what is refused is not decoded"
    backend.gate.set()
    answer = await first
    assert answer.status_code == 200
    timings = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert timings == ["receive", "decode", "queue", "infer", "encode"]
    await live.idle()
    assert live.service.scheduler.schedule.ahead == 0


@pytest.mark.anyio
async def test_what_fails_before_it_has_a_slot_leaves_nothing_behind(make_live: MakeLive) -> None:
    backend = FakeBackend()
    backend.throughput = THROUGHPUT
    live = await make_live(backend)
    for content in (b"", b"no image"):
        answer = await live.client.post("/v1/mask", content=content)
        assert answer.status_code in (400, 415)
    assert live.service.scheduler.schedule.ahead == 0


def test_a_request_has_one_slot(loop: FakeClockLoop, service: Service) -> None:
    request = service.request("once")
    service.begin(request)
    service.end("once")
    again = service.begin(request)
    loop.settle()
    with pytest.raises(RuntimeError, match="was not accepted"):
        again.result()
