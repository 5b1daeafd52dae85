"""The compose files as Docker Compose itself reads them: schema, merge and what must hold."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purnet_serve.http.context import memory_ceiling_bytes
from purnet_serve.http.server import GRACE_S
from purnet_serve.settings import MIB, Settings

ROOT = Path(__file__).parents[2]
WORKER_BYTES = 350 * MIB
"""A worker that runs the shipped weights by OpenVINO on a few processors, with some room."""
CUDA_WORKER_BYTES = 4096 * MIB

GPU, SCALE = "docker/compose.gpu.yml", "docker/compose.scale.yml"

Resolve = Callable[..., dict[str, Any]]


@pytest.fixture
def resolve(program: Callable[[str], str]) -> Resolve:
    """`resolve(*overrides, **variables)`: the merged project, checked against the schema."""
    compose = program("docker-compose")

    def config(*overrides: str, **variables: str) -> dict[str, Any]:
        files = [part for file in ("docker-compose.yml", *overrides) for part in ("-f", file)]
        run = subprocess.run(
            [compose, *files, "config", "--format", "json"],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        # The package's own launcher swallows the exit status: an error is no document.
        assert run.stdout, run.stderr
        project: dict[str, Any] = json.loads(run.stdout)
        return project

    return config


def test_the_schema_is_checked(program: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "compose.yml").write_text("services: {purnet: {imag: purnet-serve}}")
    command = [program("docker-compose"), "-f", str(tmp_path / "compose.yml"), "config"]
    run = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60)
    assert not run.stdout
    assert "imag" in run.stderr


def seconds(duration: str) -> float:
    """`1m15s` -> 75."""
    units = {"m": 60, "s": 1}
    return sum(int(value) * units[unit] for value, unit in re.findall(r"(\d+)([ms])", duration))


@pytest.mark.parametrize("overrides", [(), (SCALE,), (GPU,), (GPU, SCALE)])
def test_every_container_has_as_little_as_it_needs(
    resolve: Resolve, overrides: tuple[str, ...]
) -> None:
    for name, service in resolve(*overrides)["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert int(service["mem_limit"]) > 0, name
        assert int(service["pids_limit"]) > 0, name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["driver"] == "local", name
        assert service["logging"]["options"] == {"max-size": "50m", "max-file": "5"}, name
        mounts = [mount for mount in service.get("volumes", []) if mount["type"] == "bind"]
        assert all(mount["read_only"] for mount in mounts), name


def test_only_the_service_is_published_beyond_this_host(resolve: Resolve) -> None:
    published = {
        name: [(port.get("host_ip"), port["published"]) for port in service.get("ports", [])]
        for name, service in resolve()["services"].items()
    }
    assert published == {
        "purnet": [(None, "8000")],
        "prometheus": [("127.0.0.1", "9090")],
        "grafana": [("127.0.0.1", "3000")],
    }


def test_metrics_stay_on_a_network_of_their_own(resolve: Resolve) -> None:
    project = resolve()
    purnet = project["services"]["purnet"]
    assert project["networks"]["metrics"]["internal"] is True
    assert "metrics" in purnet["networks"]
    assert str(purnet["ports"][0]["target"]) != purnet["environment"]["PURNET_METRICS_PORT"]


@pytest.mark.parametrize("overrides", [(), (SCALE,), (GPU,)])
def test_a_stop_waits_longer_than_the_drain(resolve: Resolve, overrides: tuple[str, ...]) -> None:
    service = resolve(*overrides)["services"]["purnet"]
    settings = environment(service)
    needed = settings.drain_delay_s + settings.drain_s + GRACE_S
    assert seconds(service["stop_grace_period"]) > needed


def test_the_proxy_outlives_the_longest_request(resolve: Resolve) -> None:
    proxy = resolve(SCALE)["services"]["proxy"]
    assert seconds(proxy["stop_grace_period"]) > Settings().max_timeout_s


def environment(service: dict[str, Any]) -> Settings:
    """The settings a container would read from its environment: every variable must exist."""
    return Settings.model_validate(
        {
            name.removeprefix("PURNET_").lower(): value
            for name, value in service["environment"].items()
            if value
        }
    )


def test_a_checkpoint_of_ones_own_is_mounted_read_only(resolve: Resolve) -> None:
    service = resolve(PURNET_CHECKPOINTS="/srv/weights", PURNET_CHECKPOINT="/checkpoints/mine")[
        "services"
    ]["purnet"]
    (mount,) = service["volumes"]
    assert (mount["source"], mount["target"]) == ("/srv/weights", "/checkpoints")
    assert environment(service).checkpoint == Path("/checkpoints/mine")


def test_by_default_the_shipped_weights_are_served(resolve: Resolve) -> None:
    service = resolve()["services"]["purnet"]
    assert environment(service).checkpoint is None
    assert Path(service["volumes"][0]["source"]).is_dir()


def test_gpus_are_reserved_and_demanded(resolve: Resolve) -> None:
    service = resolve(GPU, PURNET_GPUS="2", PURNET_DEVICE="cuda:0,cuda:1")["services"]["purnet"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 2, ["gpu"])
    assert service["build"]["target"] == "full"
    assert environment(service).device == "cuda:0,cuda:1"
    assert environment(resolve(GPU)["services"]["purnet"]).device == "cuda"


def test_replicas_hide_behind_the_proxy(resolve: Resolve) -> None:
    services = resolve(SCALE, PURNET_REPLICAS="5")["services"]
    assert "ports" not in services["purnet"]
    assert services["purnet"]["deploy"]["replicas"] == 5
    assert services["proxy"]["ports"][0]["published"] == "8000"
    assert services["proxy"]["networks"].keys() == {"edge"}


@pytest.mark.parametrize(
    ("overrides", "worker_bytes"), [((), WORKER_BYTES), ((GPU,), CUDA_WORKER_BYTES)]
)
def test_the_memory_limit_holds_all_that_the_settings_allow(
    resolve: Resolve, overrides: tuple[str, ...], worker_bytes: int
) -> None:
    service = resolve(*overrides)["services"]["purnet"]
    (tmp,) = service["tmpfs"]
    scratch = int(re.findall(r"size=(\d+)m", tmp)[0]) * MIB
    # Two at a time while the model is being changed.
    needed = memory_ceiling_bytes(environment(service)) + 2 * worker_bytes + scratch
    assert needed <= int(service["mem_limit"])
