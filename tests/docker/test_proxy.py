"""The proxy's configuration, in a real HAProxy before a real service with a fake model."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from photos import encoded, scene
from service_process import ServiceProcess, fake_service

CONFIGURATION = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
WAIT_S = 30.0


@pytest.fixture
def haproxy(program: Callable[[str], str]) -> str:
    return program("haproxy")


def test_the_configuration_is_valid_and_warns_of_nothing(haproxy: str) -> None:
    command = [haproxy, "-c", "-f", str(CONFIGURATION)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr


@pytest.fixture
def replica() -> Iterator[tuple[ServiceProcess, str]]:
    with fake_service() as started:
        yield started


@pytest.fixture
def port(haproxy: str, replica: tuple[ServiceProcess, str], tmp_path: Path) -> Iterator[int]:
    """Port of the proxy before one replica; its deadline for headers is shortened."""
    address = replica[1].removeprefix("http://")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = CONFIGURATION.read_text()
        for pattern, instead in (
            (r"bind :8000", f"bind fd@{listener.fileno()}"),
            (r"server-template .*", f"server replica {address}"),
            (r"timeout http-request 10s", "timeout http-request 300ms"),
        ):
            text, found = re.subn(pattern, instead, text)
            assert found == 1, pattern
        (tmp_path / "haproxy.cfg").write_text(text)
        pid = tmp_path / "pid"
        # As a daemon: the command returns when connections are taken.
        subprocess.run(
            [haproxy, "-D", "-p", str(pid), "-f", str(tmp_path / "haproxy.cfg")],
            pass_fds=(listener.fileno(),),
            check=True,
            timeout=WAIT_S,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield listener.getsockname()[1]
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_photos_pass(port: int) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/mask", content=encoded(scene()), trust_env=False
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")


def test_a_refusal_arrives_though_the_upload_was_not_read(port: int) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/mask", content=bytes(33 * 1024 * 1024), trust_env=False
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_headers_that_do_not_end_are_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as slow:
        slow.sendall(b"POST /v1/mask HTTP/1.1\r\nHost: here\r\nX-Slow: ")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_without_any_replica_the_answer_is_an_error_and_no_hang(
    port: int, replica: tuple[ServiceProcess, str]
) -> None:
    replica[0].process.kill()
    replica[0].wait()
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/mask", content=encoded(scene()), trust_env=False
    )
    assert answer.status_code in (502, 503)
