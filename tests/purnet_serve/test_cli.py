from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from service_process import fake_service, running
from typer.testing import CliRunner

from purnet_serve.cli import app

run = CliRunner().invoke


def test_version_and_help() -> None:
    assert run(app, ["--version"]).output.startswith("purnet ")
    output = run(app, ["--help"]).output
    for command in ("serve", "health", "config", "ray-config", "predict", "train", "evaluate"):
        assert command in output


def test_config_can_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURNET_PORT", "9001")
    monkeypatch.setenv("PURNET_CORS_ORIGINS", "https://a.example,https://b.example")
    monkeypatch.setenv("PURNET_RAY_RESOURCES", '{"model_node": 1}')
    lines = run(app, ["config", "--set", "max-side=99"]).output.splitlines()
    assert {"PURNET_PORT=9001", "PURNET_MAX_SIDE=99", "PURNET_CHECKPOINT="} <= set(lines)
    assert lines[0].startswith("# memory of the API process: at most ")
    for line in lines[1:]:
        monkeypatch.setenv(*line.split("=", 1))
    assert run(app, ["config"]).output.splitlines() == lines


@pytest.mark.parametrize(
    "arguments",
    [["config", "--set", "port"], ["config", "--set", "nonsense=1"], ["serve", "--port", "70000"]],
)
def test_a_bad_setting_is_named_and_exits_2(arguments: list[str]) -> None:
    result = run(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "mps"], ["device: there is no device 'mps'", "auto, cpu, cuda, cuda:N"]),
        (["--set", "max_bach=3"], ["did you mean max_batch?", "drain_s, max_batch, batch_wait_s"]),
        (["--set", "zzz=3"], ["zzz: there is no such setting.", "host, port, metrics_port"]),
    ],
)
def test_a_bad_setting_names_what_exists(arguments: list[str], named: list[str]) -> None:
    (line,) = run(app, ["serve", *arguments]).output.splitlines()
    assert all(part in line for part in named)


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>", "is an HTML page, not a checkpoint: download the file itself"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer, not the file: run `git lfs pull`",
        ),
        (b"", "is empty"),
        (None, "is cut short or damaged: download it again"),
    ],
    ids=["HTML page", "LFS pointer", "empty", "torn"],
)
def test_serve_says_in_one_plain_line_what_is_in_a_checkpoint_s_place(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    if content is None:
        from purnet.network.checkpoint import DEFAULT_CHECKPOINT

        content = DEFAULT_CHECKPOINT.read_bytes()[:100_000]
    path.write_bytes(content)
    command = ["-c", "from purnet_serve.cli import app; app()", "serve"]
    with running(command, PURNET_CHECKPOINT=str(path)) as service:
        assert service.wait() == 1
    assert [line.rstrip() for line in service.errors] == [f"{path} {said}"]


def test_serving_warns_of_variables_that_are_no_settings(tmp_path: Path) -> None:
    command = ["-c", "from purnet_serve.cli import app; app()", "serve"]
    with running(command, PURNET_MAX_BACH="4", PURNET_CHECKPOINT=str(tmp_path / "none")) as service:
        assert service.wait() == 1
    (warned,) = [entry for entry in service.logs if entry["event"] == "unknown setting"]
    assert (warned["variable"], warned["meant"]) == ("PURNET_MAX_BACH", "PURNET_MAX_BATCH")


def test_serving_on_ray_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("purnet_serve.inference.ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(app, ["serve", "--backend", "ray"])
    assert result.exit_code == 1
    assert "pip install 'purnet-serve[ray]'" in result.output


def test_serving_on_a_cluster_that_is_not_there_says_so_in_one_line() -> None:
    command = ["-c", "from purnet_serve.cli import app; app()", "serve", "--port", "0"]
    with running([*command, "--backend", "ray", "--address", "127.0.0.1:1"]) as service:
        assert service.wait() == 1
    (line,) = service.errors
    assert line.startswith("no Ray cluster at 127.0.0.1:1: ")
    assert "refused" in line


def test_the_config_file_is_checked_as_a_server_on_ray_is() -> None:
    result = run(app, ["ray-config", "--set", "device=cuda:0,cuda:1", "--set", "ray_gpus=1"])
    assert result.exit_code == 2
    assert "one device" in result.output
    result = run(app, ["ray-config", "--set", 'ray_resources={"model_node": 1}'])
    assert "model_node: 1" in result.output


def test_a_service_that_waits_for_a_cluster_ends_when_it_is_told_to() -> None:
    command = ["-c", "from purnet_serve.cli import app; app()", "serve", "--port", "0"]
    with socket.create_server(("", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with running([*command, "--backend", "ray", "--address", address]) as service:
            connections = [silent.accept()[0] for _ in range(2)]  # the second one is of Ray
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
            for connection in connections:
                connection.close()


def test_health_asks_a_service_and_reports_why_it_is_not_ready() -> None:
    with fake_service() as (service, url):
        result = run(app, ["health", "--url", url])
        assert (result.exit_code, result.output) == (0, "ready\n")
    result = run(app, ["health", "--url", url])
    assert (result.exit_code, "no answer" in result.output) == (1, True)
    assert run(app, ["health", "--url", "file:///etc/passwd"]).exit_code == 2
    for address in ("http://127.0.0.1:abc", "http://127.0.0.1:1/"):
        result = run(app, ["health", "--url", address])
        assert result.exit_code == 1
        assert address in result.output
    assert service.wait() != 0


def test_health_of_this_machine_s_service_asks_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_service() as (_, url):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("PURNET_PORT", url.rpartition(":")[2])
        monkeypatch.setenv("PURNET_HOST", "127.0.0.1")
        result = run(app, ["health"])
    assert (result.exit_code, result.output) == (0, "ready\n")


def test_health_of_a_service_that_drains() -> None:
    import signal

    with fake_service(PURNET_DRAIN_DELAY_S="1000") as (service, url):
        service.signal(signal.SIGTERM)
        service.await_line("draining", service.errors)
        result = run(app, ["health", "--url", url])
    assert (result.exit_code, "draining" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import purnet_serve.cli", ["torch", "fastapi", "uvicorn", "PIL", "numpy"]),
        ("import purnet_serve.http.server, purnet_serve.inference.local", ["torch", "ray"]),
        ("import purnet_serve.http.server, purnet_serve.inference.ray.cluster", ["torch"]),
        ("import purnet_serve.inference.ray.application", ["ray", "torch"]),
    ],
)
def test_heavy_imports_stay_inside_commands(code: str, absent: list[str]) -> None:
    check = f"{code}; import sys; sys.exit(' '.join({absent!r} & sys.modules.keys()) or 0)"
    check = check.replace(repr(absent), repr(set(absent)))
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
