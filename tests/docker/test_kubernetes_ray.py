"""The model replicas on Kubernetes: what KubeRay is asked for, and how servers get there."""

from __future__ import annotations

import copy
import inspect
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import (
    KUBERNETES,
    ROOT,
    VERSIONS,
    Build,
    Manifests,
    check_schema,
    containers_of,
    quantity_bytes,
    settings_of,
)

from purnet_serve.settings import Settings

CONSTRAINTS = (ROOT / "constraints.txt").read_text()
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()


@pytest.fixture
def ray(manifests: Build) -> Manifests:
    return manifests("ray")


@pytest.fixture
def settings(ray: Manifests) -> Settings:
    """Of the servers."""
    return settings_of(ray.environment(ray.server()[1]))


def cluster(ray: Manifests) -> dict[str, Any]:
    found: dict[str, Any] = ray.one("RayService")["spec"]["rayClusterConfig"]
    return found


def flags(container: dict[str, Any]) -> dict[str, str]:
    """`--num-cpus=0` -> {"num-cpus": "0"}."""
    pairs = (part.removeprefix("--").split("=") for part in container["command"] if "=" in part)
    return dict(pairs)


@pytest.mark.parametrize("where", ["service", "cluster", "pod"])
def test_a_field_that_does_not_exist_is_found(ray: Manifests, where: str) -> None:
    found = copy.deepcopy(ray.one("RayService"))
    {
        "service": found["spec"],
        "cluster": found["spec"]["rayClusterConfig"],
        "pod": found["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"],
    }[where]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        check_schema(found, VERSIONS[0])


def test_what_is_deployed_is_what_the_command_prints(ray: Manifests, settings: Settings) -> None:
    # That the file is what the command prints is tested with all that is generated.
    file = (KUBERNETES / "ray" / "serve-config.yaml").read_text()
    assert ray.one("RayService")["spec"]["serveConfigV2"] == file
    (application,) = yaml.safe_load(file)["applications"]
    assert application["name"] == settings.ray_app
    assert not [found for found in ray.of("ConfigMap") if "serve-config" in str(found["metadata"])]


def test_servers_use_the_cluster_of_their_pod(ray: Manifests, settings: Settings) -> None:
    assert settings.backend == "ray"
    assert settings.ray_address == "auto"
    spec, server = ray.server()
    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    name = ray.one("RayService")["metadata"]["name"]
    assert flags(sidecar)["address"] == f"{name}-head-svc:6379"
    # The server looks for Ray among the processes, and for its sockets and objects in files.
    assert spec["shareProcessNamespace"] is True
    for path in ("/tmp", "/dev/shm"):
        mounts = [
            mount["name"]
            for container in (sidecar, server)
            for mount in container["volumeMounts"]
            if mount["mountPath"] == path
        ]
        assert len(mounts) == 2
        assert len(set(mounts)) == 1


def test_nothing_runs_where_servers_and_head_are(ray: Manifests) -> None:
    (sidecar,) = ray.server()[0]["initContainers"]
    for params in (flags(sidecar), cluster(ray)["headGroupSpec"]["rayStartParams"]):
        assert params["num-cpus"] == "0"


def test_ray_is_the_same_everywhere(ray: Manifests) -> None:
    (version,) = re.findall(r"^ray==(\S+)$", CONSTRAINTS, re.M)
    assert cluster(ray)["rayVersion"] == version
    images = {container["image"] for pod in ray.pods() for container in containers_of(pod["spec"])}
    assert images == {"purnet-serve:cpu-ray"}


def test_replicas_find_room(ray: Manifests, settings: Settings) -> None:
    (group,) = cluster(ray)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    in_a_pod = int(container["resources"]["limits"]["cpu"]) // settings.ray_cpus
    assert in_a_pod >= 1
    most = settings.ray_max_replicas or settings.ray_min_replicas
    surge = math.ceil(most * settings.ray_surge_percent / 100)
    assert group["minReplicas"] * in_a_pod >= settings.ray_min_replicas
    assert group["maxReplicas"] * in_a_pod >= most + surge
    assert cluster(ray)["enableInTreeAutoscaling"] is True


def test_probes_ask_what_ray_s_agent_answers(ray: Manifests) -> None:
    from ray.dashboard.modules.reporter import healthz_agent

    answered = re.findall(r'routes\.get\("(.+)"\)', inspect.getsource(healthz_agent))
    for pod in ray.pods():
        for container in containers_of(pod["spec"]):
            if container["name"] == "purnet":
                continue
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            asked = [probe["httpGet"] for name, probe in container.items() if "Probe" in name]
            # KubeRay adds what is missing, with wget.
            assert len(asked) == 2
            for probe in asked:
                assert probe["path"] in answered
                assert ports[probe["port"]] == 52365


def test_the_object_store_fits(ray: Manifests) -> None:
    spec, _ = ray.server()
    (shared,) = (volume for volume in spec["volumes"] if volume["name"] == "shared-memory")
    bytes_of_store = int(flags(spec["initContainers"][0])["object-store-memory"])
    assert bytes_of_store < quantity_bytes(shared["emptyDir"]["sizeLimit"])
    assert bytes_of_store >= 75 << 20, "Ray refuses less"


def test_the_autoscaler_of_ray_has_no_more_rights(ray: Manifests) -> None:
    context = cluster(ray)["autoscalerOptions"]["securityContext"]
    assert context == ray.server()[1]["securityContext"]


def test_servers_reach_the_cluster_and_names_alone(ray: Manifests) -> None:
    name = ray.one("RayService")["metadata"]["name"]
    for pod in ray.pods():
        assert pod["metadata"]["labels"]["ray-cluster"] == name
    policy = ray.one("NetworkPolicy", "purnet-ray")["spec"]
    members = {"podSelector": {"matchLabels": {"ray-cluster": name}}}
    assert policy["podSelector"] == members["podSelector"]
    assert policy["ingress"] == [{"from": [members]}]
    to_members, to_names = policy["egress"]
    assert to_members == {"to": [members]}
    assert {port["port"] for port in to_names["ports"]} == {53}
    outside = [
        found["metadata"]["name"]
        for found in ray.of("NetworkPolicy")
        for rule in found["spec"].get("egress", [])
        if "to" not in rule
    ]
    assert outside == ["purnet-ray-head"]


def test_replicas_alone_are_kept_counted_and_read(ray: Manifests) -> None:
    (group,) = cluster(ray)["workerGroupSpecs"]
    own = {
        name: value
        for name, value in group["template"]["metadata"]["labels"].items()
        if name.startswith("app.kubernetes.io/")
    }
    policy = ray.one("NetworkPolicy", "purnet-ray-metrics")["spec"]
    assert policy["podSelector"]["matchLabels"] == own
    assert policy["ingress"] == ray.one("NetworkPolicy", "purnet-metrics")["spec"]["ingress"]
    assert ray.one("PodMonitor")["spec"]["selector"]["matchLabels"] == own
    budget = ray.one("PodDisruptionBudget", "purnet-models")["spec"]
    assert budget["selector"]["matchLabels"] == own
    # Kubernetes cannot tell how many pods a RayCluster should have, so it refuses a percentage.
    assert budget["minAvailable"] == 1
    # Ray's HTTP proxy, for which KubeRay would wait on the head, runs nowhere.
    service = ray.one("RayService")["spec"]
    assert yaml.safe_load(service["serveConfigV2"])["proxy_location"] == "Disabled"
    assert service["excludeHeadPodFromServeSvc"] is True


def test_servers_are_not_added_when_replicas_are_short(ray: Manifests) -> None:
    metrics = ray.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["ContainerResource"]


def test_metrics_are_relabelled_as_by_compose(ray: Manifests) -> None:
    jobs = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"]
    (rules,) = (job["metric_relabel_configs"] for job in jobs if job["job_name"] == "ray")
    (endpoint,) = ray.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    names = {"source_labels": "sourceLabels", "target_label": "targetLabel"}
    assert endpoint["metricRelabelings"] == [
        {names.get(key, key): value for key, value in rule.items()} for rule in rules
    ]


def test_servers_have_time_to_join_a_new_cluster(ray: Manifests) -> None:
    service = ray.one("RayService")["spec"]
    assert service["upgradeStrategy"]["type"] == "NewCluster"
    deployment = ray.one("Deployment", "purnet")["spec"]
    # The slowest rollout of the servers that still counts as one.
    assert service["rayClusterDeletionDelaySeconds"] >= 2 * deployment["progressDeadlineSeconds"]


def test_a_folder_of_one_s_own_deploys_what_it_says(manifests: Build, tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n# production-ray/kustomization.yaml\n(.*?)```", GUIDE, re.S)
    (tmp_path / "purnet-serve").symlink_to(ROOT)
    folder = tmp_path / "production-ray"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text)
    lines = (
        (KUBERNETES / "ray" / "settings.env")
        .read_text()
        .replace("MAX_REPLICAS=8", "MAX_REPLICAS=9")
    )
    (folder / "settings.env").write_text(lines)
    (folder / "serve-config.yaml").write_text("applications: []\n")
    built = manifests(folder)
    assert settings_of(built.environment(built.server()[1])).ray_max_replicas == 9
    assert built.one("RayService")["spec"]["serveConfigV2"] == "applications: []\n"
    assert "serve-config" not in {found["metadata"]["name"] for found in built.of("ConfigMap")}
    images = {each["image"] for pod in built.pods() for each in containers_of(pod["spec"])}
    assert images == {"registry.example.com/purnet-serve:0.2.0-cpu-ray"}
