"""The model tier as an application of Ray Serve: what is deployed, and its config file.

`purnet serve --backend ray` deploys it, and `purnet ray-config` writes the file that `serve deploy`
and KubeRay's `RayService` take. Only what builds it for Ray imports Ray.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from purnet_serve.inference.local import PREDICTOR
from purnet_serve.inference.ray.messages import PROTOCOL
from purnet_serve.inference.ray.replica import HEALTH_S, ModelReplica
from purnet_serve.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

DEPLOYMENT = "Model"
"""The application's one deployment."""
BUILDER = "purnet_serve.inference.ray.application:build"
"""What Ray Serve imports for the config file."""

ENVIRONMENT = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
"""Of a replica. Its event loop forks to start a worker, and gRPC, which Ray Serve talks by, would
otherwise run handlers in the child, which crash there now and then."""

HEALTH_PERIOD_S = 10.0
STOP_S = 10.0
"""Seconds for a replica to end its worker."""
_OF_A_REPLICA = (
    "checkpoint",
    "device",
    "max_batch",
    "engine_threads",
    "load_timeout_s",
    "watchdog_s",
    "health_check_s",
    "log_format",
    "log_level",
)
"""The settings that a replica reads; it is given all of them, whatever its environment says."""
_OF_LOGS_ALONE = "log_format", "log_level"
"""Those of them for which replicas are not replaced."""


def replica_settings(settings: Settings) -> dict[str, Any]:
    """The settings of a replica, as values that JSON has.

    Its engine gets as many threads as Ray reserves processors for it, because Ray does not keep a
    replica from using more. A checkpoint's path is made absolute, because a replica starts in a
    directory of Ray's choice.
    """
    values = settings.model_dump(mode="json", include=set(_OF_A_REPLICA))
    if settings.device == "auto":
        # A replica never computes on a GPU that Ray did not give it, or without one that it did.
        values["device"] = "cuda" if settings.ray_gpus else "cpu"
    if settings.checkpoint is not None:
        values["checkpoint"] = str(settings.checkpoint.absolute())
    # Ray Serve admits, and sends it no more.
    values["max_requests_in_flight"] = settings.ray_max_in_flight
    values["engine_threads"] = settings.engine_threads or max(1, math.floor(settings.ray_cpus))
    return values


def deployment_options(settings: Settings) -> dict[str, Any]:
    """How Ray Serve runs the replicas: options of a deployment, as values that JSON has."""
    least, most = settings.ray_min_replicas, settings.ray_max_replicas
    actor: dict[str, Any] = {
        "num_cpus": settings.ray_cpus,
        "num_gpus": settings.ray_gpus,
        "runtime_env": {"env_vars": ENVIRONMENT},
    }
    if settings.ray_resources:
        actor["resources"] = settings.ray_resources
    options: dict[str, Any] = {
        "max_ongoing_requests": settings.ray_max_in_flight,
        "max_queued_requests": settings.ray_max_queued,
        # No request takes longer, so a replica that is stopped answers all it has, and then ends
        # its worker.
        "graceful_shutdown_timeout_s": settings.max_timeout_s + STOP_S,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": 2 * HEALTH_S,
        "max_surge_percent": settings.ray_surge_percent,
        "ray_actor_options": actor,
        # A line for each image would cost more than what it says.
        "logging_config": {"enable_access_log": False},
    }
    if most is None or most == least:
        return options | {"num_replicas": least}
    return options | {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": settings.ray_target_in_flight,
            "upscale_delay_s": settings.ray_upscale_delay_s,
            "downscale_delay_s": settings.ray_downscale_delay_s,
        }
    }


def config_file(settings: Settings) -> dict[str, Any]:
    """The config file of Ray Serve. It starts none of Ray's HTTP proxies: servers are ours."""
    return {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": settings.ray_app,
                "route_prefix": None,
                "import_path": BUILDER,
                "args": replica_settings(settings),
                "deployments": [{"name": DEPLOYMENT, **deployment_options(settings)}],
            }
        ],
    }


def deployed_digest(settings: Settings, factory: str) -> str:
    """Digest of everything that makes a deployment what it is, this package's version included.

    Without the settings of logs: a server that logs more must not replace all replicas.
    """
    values = replica_settings(settings)
    replica = {name: values[name] for name in values if name not in _OF_LOGS_ALONE}
    parts = [PROTOCOL, version("purnet-serve"), factory, replica, deployment_options(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build(arguments: Mapping[str, Any]) -> Application:
    """The application of a config file, which gives the deployment's options itself."""
    return _bind({}, arguments)


def build_for_serve(
    settings: Settings, factory: str = PREDICTOR, code_version: str | None = None
) -> Application:
    """The application that `purnet serve` deploys, which knows from what it was made.

    Ray Serve leaves the replicas of an equal `code_version` alone, however many servers deploy it;
    by default that is the digest.
    """
    digest = deployed_digest(settings, factory)
    return _bind(
        deployment_options(settings),
        replica_settings(settings),
        code_version=code_version or digest,
        deployed=digest,
        factory=factory,
    )


def _bind(
    options: Mapping[str, Any],
    /,
    *arguments: Any,
    code_version: str | None = None,
    **keywords: Any,
) -> Application:
    from ray import serve

    deployment = serve.deployment(name=DEPLOYMENT, **options)(ModelReplica)
    if code_version is not None:
        # Without one, Ray Serve makes up another at each deployment and replaces every replica.
        deployment = deployment.options(version=code_version, _internal=True)
    return deployment.bind(*arguments, **keywords)
