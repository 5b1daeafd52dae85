"""The server as a process: signals, drain, reload, exit codes, the metrics port."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import hashlib
import os
import signal
import socket
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fake_backend import WAIT_S, FakeBackend
from live_service import MakeLive
from photos import encoded, scene
from service_process import ServiceProcess, fake_service, running

from purnet_serve.errors import OperatorError, StartupError
from purnet_serve.http import server
from purnet_serve.http.server import listen, metrics_server
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

PHOTO = encoded(scene())
SCRIPT = str(Path(__file__).parents[2] / "fakes" / "serve_fake.py")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_0(number: signal.Signals) -> None:
    with fake_service() as (service, url):
        assert httpx.post(f"{url}/v1/mask", content=PHOTO, trust_env=False).status_code == 200
        service.signal(number)
        assert service.wait() == 0
    assert not any("Traceback" in line for line in service.errors)


def test_what_does_not_fit_the_drain_time_gets_503() -> None:
    with (
        fake_service(PURNET_FAKE_GATE="closed", PURNET_DRAIN_S="0.3") as (service, url),
        ThreadPoolExecutor(1) as threads,
    ):
        post = threads.submit(
            httpx.post, f"{url}/v1/mask", content=PHOTO, trust_env=False, timeout=WAIT_S
        )
        service.await_line("asked", service.lines)
        service.signal(signal.SIGTERM)
        answer = post.result(WAIT_S)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert service.wait() == 0


@pytest.mark.anyio
async def test_the_collector_leaves_out_what_the_start_made(make_live: MakeLive) -> None:
    gc.unfreeze()
    try:
        await make_live()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.mark.anyio
async def test_what_was_accepted_is_finished(make_live: MakeLive) -> None:
    live = await make_live(drain_s=WAIT_S)
    live.backend.gate.clear()
    answers = [asyncio.create_task(live.client.post("/v1/mask", content=PHOTO)) for _ in range(5)]
    for _ in answers:
        await live.backend.one_arrived()
    assert live.sample("purnet_draining") == 0
    live.server.stop()
    live.backend.gate.set()
    assert [(await answer).status_code for answer in answers] == [200] * 5
    await live.running
    assert live.sample("purnet_draining") == 1
    with pytest.raises(httpx.ConnectError):
        await live.client.get("/livez")


def test_a_second_signal_ends_it_at_once() -> None:
    with fake_service(PURNET_DRAIN_DELAY_S="1000") as (service, url):
        service.signal(signal.SIGTERM)
        service.await_line("draining", service.errors)
        answer = httpx.get(f"{url}/readyz", trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert answer.headers["retry-after"] == "1"
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


@pytest.mark.anyio
async def test_the_drain_time_is_not_cut_short_by_the_grace_of_uvicorn(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GRACE_S", 0)
    live = await make_live(drain_s=WAIT_S)
    live.backend.gate.clear()
    answer = asyncio.create_task(live.client.post("/v1/mask", content=PHOTO))
    await live.backend.one_arrived()
    live.server.stop()
    done, _ = await asyncio.wait({answer}, timeout=1.0)
    assert not done, "the request was ended before its time"
    live.backend.gate.set()
    assert (await answer).status_code == 200
    await live.running


@contextmanager
def in_a_terminal(hangup: signal.Handlers) -> Iterator[tuple[ServiceProcess, int]]:
    """A service in the foreground of a terminal, and that terminal. `nohup` ignores hangups."""
    terminal, side = os.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, hangup)
        fcntl.ioctl(side, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(side, os.getpgrp())

    popen = {"start_new_session": True, "preexec_fn": take_terminal}
    with fake_service(popen=popen) as (service, _):
        os.close(side)
        yield service, terminal


def test_the_end_of_its_terminal_ends_it_and_any_other_hangup_does_not() -> None:
    with in_a_terminal(signal.SIG_DFL) as (service, terminal):
        service.signal(signal.SIGHUP)
        service.await_line("reloaded", service.errors)
        os.close(terminal)
        assert service.wait() == 0
    assert any("draining" in line for line in service.errors)


def test_nohup_lets_it_outlive_its_terminal() -> None:
    with in_a_terminal(signal.SIG_IGN) as (service, terminal):
        os.close(terminal)
        service.await_line("reloaded", service.errors)
        assert not any("draining" in line for line in service.errors)


def test_hangup_reads_keys_and_checkpoint_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(hashlib.sha256(b"old").hexdigest())
    with (
        fake_service(PURNET_API_KEYS_FILE=str(file)) as (service, url),
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        assert client.get("/v1/models", headers={"X-Api-Key": "new"}).status_code == 403
        file.write_text(hashlib.sha256(b"new").hexdigest())
        service.signal(signal.SIGHUP)
        service.await_line("reloaded", service.errors)
        answer = client.get("/v1/models", headers={"Authorization": "Bearer new"})
        assert answer.json()["models"][0]["version"] == "fake@bbbbbbbbbbbb"
        file.write_text("no digest")
        service.signal(signal.SIGHUP)
        service.await_line("API keys refused", service.errors)
        service.await_line("reloaded", service.errors)
        assert client.get("/v1/models", headers={"X-Api-Key": "new"}).status_code == 200
        counted = client.get("/metrics").text
        assert 'purnet_reloads_total{result="ok"} 1.0' in counted
        assert 'purnet_reloads_total{result="failed"} 1.0' in counted


@pytest.mark.anyio
async def test_keys_are_taken_over_although_the_model_is_refused(
    make_live: MakeLive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "purnet_serve.http.server")
    file = tmp_path / "keys"
    file.write_text(hashlib.sha256(b"stolen").hexdigest())
    live = await make_live(api_keys_file=file)
    live.backend.refuses_reload = True
    file.write_text(hashlib.sha256(b"new").hexdigest())
    await live.server._reload()
    said = [record.message for record in caplog.records]
    assert said[-2:] == ["API keys reloaded", "reload refused"]
    for key, status in ((b"stolen", 403), (b"new", 200)):
        assert (
            await live.client.get("/v1/models", headers={"X-Api-Key": key})
        ).status_code == status
    assert live.sample("purnet_reloads_total", result="failed") == 1


def test_a_port_that_is_taken_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running([SCRIPT], PURNET_PORT=port) as service:
            assert service.wait() == 1
        assert f"port {port}" in "".join(service.errors)
        with pytest.raises(StartupError):
            listen(Settings(port=int(port)))
        metrics = Metrics()
        with (
            pytest.raises(StartupError),
            metrics_server(Settings(metrics_port=int(port)), metrics.registry),
        ):
            pass


def test_a_file_of_keys_that_is_missing_is_reported_in_one_line(tmp_path: Path) -> None:
    with running([SCRIPT], PURNET_PORT="0", PURNET_API_KEYS_FILE=str(tmp_path / "no")) as service:
        assert service.wait() == 1
    assert "cannot read the API keys" in "".join(service.errors)
    assert not any("Traceback" in line for line in service.errors)


@pytest.mark.anyio
async def test_a_backend_that_cannot_start_ends_the_service(make_live: MakeLive) -> None:
    class FailingBackend(FakeBackend):
        async def wait_ready(self) -> None:
            await super().wait_ready()
            raise StartupError("no such device")

    backend = FailingBackend()
    backend.became_ready.clear()
    live = await make_live(backend)
    backend.became_ready.set()
    with pytest.raises(OperatorError, match="no such device"):
        await live.running


@pytest.mark.anyio
async def test_metrics_answer_on_their_own_port_while_the_loop_is_stuck(
    make_live: MakeLive,
) -> None:
    live = await make_live(metrics_port=0)
    assert (await live.client.get("/metrics")).status_code == 404
    stuck, free = threading.Event(), threading.Event()

    def block() -> None:
        stuck.set()
        assert free.wait(WAIT_S)

    answers: list[str] = []

    def scrape(port: int) -> None:
        assert stuck.wait(WAIT_S)
        answers.append(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
        free.set()

    with metrics_server(Settings(metrics_port=0), live.metrics.registry) as port:
        assert port is not None
        scraper = threading.Thread(target=scrape, args=(port,))
        scraper.start()
        block()
        scraper.join(WAIT_S)
    assert "purnet_requests_in_flight 0.0" in answers[0]


def test_sockets_send_at_once_and_have_a_timeout() -> None:
    with (
        listen(Settings(port=0, send_timeout_s=7)) as sock,
        socket.create_connection(sock.getsockname()[:2], WAIT_S),
    ):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="page faults are read from Linux")
def test_the_memory_of_a_photo_is_used_again_for_the_next() -> None:
    photo = encoded(scene(640, 480), "JPEG")

    def page_faults(pid: int) -> int:
        # Behind the name, which may have spaces: field 10 of proc(5), minflt.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])

    with fake_service() as (service, url), httpx.Client(trust_env=False) as client:
        for _ in range(20):
            client.post(f"{url}/v1/mask", content=photo).raise_for_status()
        before = page_faults(service.process.pid)
        for _ in range(20):
            client.post(f"{url}/v1/mask", content=photo).raise_for_status()
        assert (page_faults(service.process.pid) - before) / 20 < 50
