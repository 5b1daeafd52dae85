"""The middleware without a server: which messages it asks for, and which it sends."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from admitted import admit
from fake_backend import WAIT_S, FakeBackend
from photos import encoded, scene

from purnet_serve.http.answer import answer_photo
from purnet_serve.http.app import create_app
from purnet_serve.images.codec import Options
from purnet_serve.inference.backend import Throughput
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

pytestmark = pytest.mark.anyio

PHOTO = encoded(scene())
KEY = "correct horse"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


class AsgiRequest:
    """One request through the application, message by message."""

    def __init__(self, app: Any, *, path: str = "/v1/mask", headers: dict[str, str] | None = None):
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        self.app = app
        self.received = self.received_before_answer = 0
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        return await self.incoming.get()

    async def send(self, message: dict[str, Any]) -> None:
        if not self.sent:
            self.received_before_answer = self.received
        self.sent.append(message)

    async def run(self) -> AsgiRequest:
        async with asyncio.timeout(WAIT_S):
            await self.app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode().lower(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def problem(self) -> dict[str, Any]:
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        document: dict[str, Any] = json.loads(body)
        return document


def build(backend: FakeBackend | None = None, **settings: Any) -> Any:
    return create_app(Settings(**settings), backend or FakeBackend(), Metrics())


def keyed(tmp_path: Path, **settings: Any) -> Any:
    file = tmp_path / "keys"
    file.write_text(hashlib.sha256(KEY.encode()).hexdigest())
    app = build(api_keys_file=file, **settings)
    app.state.service.keys.load()
    return app


def sized(length: int, **more: str) -> dict[str, str]:
    return {"Content-Length": str(length), **more}


async def check_refused(request: AsgiRequest, status: int, code: str) -> None:
    admission = request.app.state.service.admission
    before = (admission.requests, admission.bytes)
    await request.run()
    assert (request.status, request.problem["code"]) == (status, code)
    assert (admission.requests, admission.bytes) == before
    assert request.received_before_answer == 0, "a byte of the body was asked for"
    assert "connection" not in request.headers
    registry = request.app.state.service.metrics.registry
    assert registry.get_sample_value("purnet_errors_total", {"code": code}) == 1


async def test_not_ready_comes_first(tmp_path: Path) -> None:
    app = keyed(tmp_path)
    app.state.service.backend.reason = "the model is loading"
    request = AsgiRequest(app, headers=sized(10**9))
    await check_refused(request, 503, "not_ready")
    assert request.headers["retry-after"] == "1"
    assert "the model is loading" in request.problem["detail"]


async def test_draining_is_its_own_reason() -> None:
    app = build()
    app.state.service.admission.stop_admitting()
    request = AsgiRequest(app, headers=sized(1))
    request.incoming.put_nowait({"type": "http.request", "body": b"x", "more_body": False})
    await check_refused(request, 503, "draining")


async def test_the_key_comes_before_the_body(tmp_path: Path) -> None:
    app = keyed(tmp_path, max_requests_in_flight=1)
    admit(app.state.service.admission, 0)
    request = AsgiRequest(app, headers=sized(10**9))
    await check_refused(request, 401, "key_missing")
    assert request.headers["www-authenticate"] == "Bearer"
    await check_refused(
        AsgiRequest(app, headers=sized(1, **{"X-Api-Key": "x"})), 403, "key_unknown"
    )
    bearer = {"Authorization": f"Bearer {KEY}"}
    await check_refused(AsgiRequest(app, headers=sized(1, **bearer)), 429, "too_many_requests")


async def test_requests_in_flight_come_before_bytes() -> None:
    app = build(max_requests_in_flight=1, max_bytes_in_flight=100, max_body_bytes=100)
    admit(app.state.service.admission, 100)
    request = AsgiRequest(app, headers=sized(10**9))
    await check_refused(request, 429, "too_many_requests")
    assert request.problem["limit"] == 1
    assert request.headers["retry-after"] == "1"


@pytest.mark.parametrize("headers", [sized(51), {}, {"Transfer-Encoding": "chunked"}])
async def test_bytes_in_flight_reserve_what_is_announced_or_the_most(
    headers: dict[str, str],
) -> None:
    app = build(max_bytes_in_flight=100, max_body_bytes=100)
    admit(app.state.service.admission, 50)
    await check_refused(AsgiRequest(app, headers=headers), 429, "too_many_bytes")


async def test_what_cannot_be_in_time_is_refused_before_a_byte_of_it() -> None:
    backend = FakeBackend()
    backend.throughput = Throughput(latency_s=2.0, interval_s=1.0, concurrency=1)
    app = build(backend)
    scheduler = app.state.service.scheduler
    first = admit(app.state.service.admission, 10)
    first.deadline = asyncio.get_running_loop().time() + 30
    scheduler.accept(first, None)
    headers = sized(1000, **{"X-Timeout-Ms": "1500"})
    await check_refused(AsgiRequest(app, headers=headers), 429, "would_be_late")
    scheduler.release(first)
    assert scheduler.schedule.ahead == 0


async def test_an_announced_length_over_the_limit_is_413() -> None:
    request = AsgiRequest(build(max_body_bytes=100), headers=sized(101))
    await check_refused(request, 413, "body_too_large")
    assert (request.problem["limit"], request.problem["actual"]) == (100, 101)


@pytest.mark.parametrize("length", ["-1", "1, 1", "ten", "+1", "1" * 40, "\u0661".encode().hex()])
async def test_a_length_that_is_no_number_is_400(length: str) -> None:
    request = AsgiRequest(build(), headers={"Content-Length": length})
    await check_refused(request, 400, "malformed_body")


async def test_bytes_are_counted_whatever_was_announced() -> None:
    app = build(max_body_bytes=100)
    chunked = AsgiRequest(app, headers={"Transfer-Encoding": "chunked"})
    for _ in range(2):
        chunked.incoming.put_nowait({"type": "http.request", "body": bytes(60), "more_body": True})
    assert (await chunked.run()).problem["code"] == "body_too_large"
    lying = AsgiRequest(app, headers=sized(10))
    lying.incoming.put_nowait({"type": "http.request", "body": bytes(60), "more_body": True})
    assert (await lying.run()).problem["code"] == "malformed_body"
    assert (app.state.service.admission.requests, app.state.service.admission.bytes) == (0, 0)


async def test_an_upload_that_stalls_is_408() -> None:
    app = build(upload_timeout_s=0.01)
    request = await AsgiRequest(app, headers=sized(10)).run()
    assert (request.status, request.problem["code"]) == (408, "upload_timeout")
    assert app.state.service.admission.bytes == 0


async def test_the_request_s_own_deadline_bounds_the_upload_too() -> None:
    request = await AsgiRequest(build(), headers=sized(10, **{"X-Timeout-Ms": "100"})).run()
    assert (request.status, request.problem["code"]) == (504, "deadline")


@pytest.mark.parametrize("offered", ["", "a b", "x" * 129, "ä", 'a"b', "a\tb"])
async def test_an_id_that_is_not_plain_is_replaced(offered: str) -> None:
    request = await AsgiRequest(build(), path="/nowhere", headers={"X-Request-Id": offered}).run()
    assert request.headers["x-request-id"] != offered
    assert len(request.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("offered", "flags"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", "01"),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", "00"),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", "01"),  # a flag of later versions
        (f"01-{TRACE_ID}-{SPAN_ID}-01-later", "01"),
    ],
)
async def test_a_trace_is_continued_in_answer_and_log(
    offered: str, flags: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "purnet_serve.access")
    request = await AsgiRequest(build(), path="/nowhere", headers={"traceparent": offered}).run()
    version, trace_id, span_id, answered = request.headers["traceparent"].split("-")
    assert (version, trace_id, answered) == ("00", TRACE_ID, flags)
    assert len(bytes.fromhex(span_id)) == 8
    assert span_id != SPAN_ID
    assert "x-request-id" in request.headers
    assert [record.trace_id for record in caplog.records] == [TRACE_ID]


@pytest.mark.parametrize(
    "offered",
    [
        "",
        "x",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID}-{SPAN_ID}-01\r\nX-Other: 1",
    ],
)
async def test_a_malformed_trace_is_ignored(offered: str) -> None:
    request = await AsgiRequest(build(), path="/nowhere", headers={"traceparent": offered}).run()
    assert "traceparent" not in request.headers


async def test_a_client_that_goes_while_uploading_is_counted_there() -> None:
    app = build()
    request = AsgiRequest(app, headers=sized(10))
    request.incoming.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
    request.incoming.put_nowait({"type": "http.disconnect"})
    await request.run()
    assert request.sent == []
    registry = app.state.service.metrics.registry
    assert registry.get_sample_value("purnet_client_gone_total", {"stage": "receive"}) == 1
    assert app.state.service.admission.requests == 0


async def test_other_api_paths_ask_for_the_key_and_health_does_not(tmp_path: Path) -> None:
    app = keyed(tmp_path)
    for path, status in (("/v1/models", 401), ("/v1/nope", 401), ("/livez", 200), ("/nope", 404)):
        request = AsgiRequest(app, path=path)
        request.scope["method"] = "GET"
        assert (await request.run()).status == status


async def test_a_root_path_hides_no_route(tmp_path: Path) -> None:
    app = keyed(tmp_path, root_path="/purnet")
    for path in ("/v1/mask", "/purnet/v1/mask"):
        assert (await AsgiRequest(app, path=path, headers=sized(1)).run()).status == 401


async def test_the_send_time_limit_holds_for_the_headers_too() -> None:
    """uvicorn holds them while the client has not read the answer before on its connection."""
    app = build(send_timeout_s=0.01)
    request = AsgiRequest(app, path="/livez")
    request.scope["method"] = "GET"

    async def never(_: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    request.send = never  # type: ignore[method-assign]
    await request.run()
    registry = app.state.service.metrics.registry
    assert registry.get_sample_value("purnet_client_gone_total", {"stage": "send"}) == 1


async def test_a_photo_is_not_answered_for_a_request_that_was_not_admitted() -> None:
    app = build()
    service = app.state.service
    request = admit(service.admission, 0)
    service.admission.release(request)
    with pytest.raises(RuntimeError, match="was not admitted"):
        await answer_photo(service, request, PHOTO, Options())
    assert service.admission.bytes == 0


async def waiting_for_its_mask() -> tuple[FakeBackend, Any, AsgiRequest, asyncio.Task[Any]]:
    """A request whose prediction does not come, and the task that serves it."""
    backend = FakeBackend()
    backend.gate.clear()
    app = build(backend)
    request = AsgiRequest(app, headers=sized(len(PHOTO)))
    request.incoming.put_nowait({"type": "http.request", "body": PHOTO, "more_body": False})
    running = asyncio.create_task(request.run())
    await backend.one_arrived()
    return backend, app, request, running


async def test_an_aborted_request_is_answered_when_nothing_was_sent() -> None:
    from purnet_serve.errors import DrainingError

    backend, app, request, running = await waiting_for_its_mask()
    app.state.service.admission.abort_all(DrainingError("over", retry_after_s=1))
    await running
    assert (request.status, request.problem["code"], backend.cancelled) == (503, "draining", 1)


async def test_cancelling_the_server_s_task_cancels_the_prediction() -> None:
    backend, app, _, running = await waiting_for_its_mask()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (backend.cancelled, app.state.service.admission.requests) == (1, 0)
