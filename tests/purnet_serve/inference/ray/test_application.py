from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from purnet_serve.inference.ray.application import (
    config_file,
    deployed_digest,
    deployment_options,
    replica_settings,
)
from purnet_serve.inference.ray.replica import HEALTH_S
from purnet_serve.settings import Settings


def options(**settings: Any) -> dict[str, Any]:
    return deployment_options(Settings(backend="ray", **settings))


def test_the_number_of_replicas_is_fixed_unless_there_may_be_more() -> None:
    assert options(ray_min_replicas=3)["num_replicas"] == 3
    assert options(ray_min_replicas=3, ray_max_replicas=3)["num_replicas"] == 3
    assert "autoscaling_config" not in options(ray_min_replicas=3)


def test_replicas_are_added_and_removed_as_the_settings_say() -> None:
    found = options(
        ray_min_replicas=2,
        ray_max_replicas=9,
        ray_target_in_flight=6,
        ray_upscale_delay_s=5,
        ray_downscale_delay_s=60,
    )
    assert "num_replicas" not in found
    assert found["autoscaling_config"] == {
        "min_replicas": 2,
        "max_replicas": 9,
        "target_ongoing_requests": 6,
        "upscale_delay_s": 5,
        "downscale_delay_s": 60,
    }


def test_a_replica_takes_of_its_node_what_the_settings_say() -> None:
    found = options(ray_cpus=2, ray_gpus=0.5, ray_resources={"model_node": 1})["ray_actor_options"]
    assert (found["num_cpus"], found["num_gpus"]) == (2, 0.5)
    assert found["resources"] == {"model_node": 1}
    assert "resources" not in options()["ray_actor_options"]


def test_the_handlers_of_grpc_do_not_run_in_a_worker_that_begins() -> None:
    environment = options()["ray_actor_options"]["runtime_env"]["env_vars"]
    assert environment == {"GRPC_ENABLE_FORK_SUPPORT": "0"}


def test_limits_reach_the_deployment() -> None:
    found = options(ray_max_in_flight=7, ray_max_queued=8, ray_surge_percent=0, max_timeout_s=45)
    assert (found["max_ongoing_requests"], found["max_queued_requests"]) == (7, 8)
    assert found["max_surge_percent"] == 0
    assert found["graceful_shutdown_timeout_s"] == 55, "no request may take longer than 45 s"
    assert found["health_check_timeout_s"] > HEALTH_S


def test_the_engine_has_the_threads_that_ray_reserves() -> None:
    def threads(**settings: Any) -> int:
        return int(replica_settings(Settings(backend="ray", **settings))["engine_threads"])

    assert [threads(ray_cpus=cpus) for cpus in (0.5, 1, 3.5)] == [1, 1, 3]
    assert threads(ray_cpus=1, engine_threads=4) == 4


def test_a_replica_computes_where_ray_gave_it_something() -> None:
    def device(**settings: Any) -> str:
        return str(replica_settings(Settings(backend="ray", **settings))["device"])

    assert (device(), device(ray_gpus=0.5)) == ("cpu", "cuda")
    assert device(ray_gpus=1, device="cuda:0") == "cuda:0"


def test_a_replica_is_given_nothing_of_the_server_s_own() -> None:
    own = {"port": 9001, "api_keys_file": "keys", "batch_wait_s": 1}
    given = replica_settings(Settings(backend="ray", max_batch=3, log_level="debug", **own))
    assert (given["max_batch"], given["log_level"]) == (3, "debug")
    assert not {*own, "backend", "ray_cpus"} & set(given)
    assert Settings(**given).max_batch == 3


def test_a_checkpoint_is_named_by_a_path_from_the_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = replica_settings(Settings(backend="ray", checkpoint=Path("mine.safetensors")))
    assert given["checkpoint"] == str(tmp_path / "mine.safetensors")
    assert replica_settings(Settings(backend="ray"))["checkpoint"] is None


def test_the_digest_is_of_what_changes_replicas_and_of_nothing_else() -> None:
    def digest(factory: str = "a:b", **settings: Any) -> str:
        return deployed_digest(Settings(backend="ray", **settings), factory)

    assert digest() == digest(port=9001) == digest(ray_address="auto") == digest(batch_wait_s=1)
    assert digest() == digest(log_level="debug") == digest(log_format="text")
    others = [digest(max_batch=3), digest(ray_min_replicas=2), digest(factory="a:c")]
    assert len({digest(), *others}) == 4


def test_the_config_file_is_plain_and_starts_no_proxy_of_ray() -> None:
    found = config_file(Settings(backend="ray", ray_app="cats", ray_min_replicas=2))
    assert json.loads(json.dumps(found)) == found
    assert found["proxy_location"] == "Disabled"
    (app,) = found["applications"]
    assert (app["name"], app["route_prefix"]) == ("cats", None)
    ServeDeploySchema.model_validate(found)
    (deployment,) = app["deployments"]
    assert (deployment["name"], deployment["num_replicas"]) == ("Model", 2)


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "ray", "device": "cuda:0,cuda:1"},
        {"ray_min_replicas": 3, "ray_max_replicas": 2},
        {"ray_gpus": 1, "device": "cpu"},
        {"ray_address": "ray://head:10001"},
        {"backend": "ray", "device": "cuda"},
        {"backend": "dask"},
        {"ray_resources": "model_node=1"},
        {"ray_resources": {"model_node": -1}},
        {"ray_address": "head:6379"},
        {"ray_gpus": 1.5},
        {"ray_max_replicas": 2, "ray_target_in_flight": 100, "ray_max_in_flight": 8},
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Settings(**values)


def test_a_target_means_nothing_where_the_number_of_replicas_is_fixed() -> None:
    for most in (None, 1):
        settings = Settings(backend="ray", ray_max_in_flight=2, ray_max_replicas=most)
        assert settings.ray_max_in_flight == 2


def test_resources_are_read_from_text_as_from_the_environment() -> None:
    assert Settings(ray_resources='{"model_node": 1}').ray_resources == {"model_node": 1}  # type: ignore[arg-type]
