"""The manifests as kustomize builds them: their schemas, the code they are for, and each other."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from fake_backend import FakeBackend
from fastapi.testclient import TestClient
from manifests import (
    KUBERNETES,
    ROOT,
    VERSIONS,
    Build,
    check_schema,
    containers_of,
    quantity_bytes,
    selects,
    settings_of,
)

from purnet_serve.http.app import create_app
from purnet_serve.http.context import memory_ceiling_bytes
from purnet_serve.http.server import GRACE_S
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import MIB

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
OVERLAYS = ("base", "cpu", "gpu", "ray")
WORKER_BYTES = {"auto": 350 * MIB, "cuda": 4096 * MIB}
"""A worker with the shipped weights, with some room."""
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

# --- schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_as_its_schema_says(manifests: Build, overlay: str, version: str) -> None:
    for found in manifests(overlay).objects:
        check_schema(found, version)


@pytest.mark.parametrize("kind", ["Deployment", "HorizontalPodAutoscaler", "ServiceMonitor"])
def test_a_field_that_does_not_exist_is_found(manifests: Build, kind: str) -> None:
    found = copy.deepcopy(manifests("cpu").one(kind))
    found["spec"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        check_schema(found, VERSIONS[0])


def test_the_native_sleep_is_why_older_versions_are_not_supported(manifests: Build) -> None:
    deployment = manifests("base").one("Deployment")
    with pytest.raises(jsonschema.ValidationError):
        kubernetes_validate.validate(deployment, "1.28", strict=True)


def test_every_file_belongs_to_a_kustomization() -> None:
    for file in KUBERNETES.rglob("*.yaml"):
        if file.name not in ("kustomization.yaml", "adapter-values.yaml"):
            assert file.name in (file.parent / "kustomization.yaml").read_text(), file


# --- the code


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_a_setting(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    _, container = built.server()
    settings = settings_of(built.environment(container))
    assert settings.host == "0.0.0.0"
    assert settings.device == ("cuda" if overlay == "gpu" else "auto")


def test_settings_are_checked_by_name(manifests: Build) -> None:
    with pytest.raises(ValueError, match="drain_sec"):
        settings_of({"PURNET_DRAIN_SEC": "1"})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_those_the_service_listens_on(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    _, container = built.server()
    settings = settings_of(built.environment(container))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.port, "metrics": settings.metrics_port}
    for service in built.of("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_that_are_named_exist(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    for pod in built.pods():
        containers = containers_of(pod["spec"])
        ports = {port["name"] for each in containers for port in each["ports"]}
        asked = [
            probe["httpGet"]["port"]
            for container in containers
            for name, probe in container.items()
            if name.endswith("Probe")
        ]
        asked += [
            port["port"]
            for policy in built.of("NetworkPolicy")
            if selects(policy["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])
            for rule in policy["spec"]["ingress"]
            for port in rule.get("ports", [])
        ]
        assert asked
        assert set(asked) <= ports


def test_probes_ask_what_the_service_answers(manifests: Build) -> None:
    built = manifests("base")
    _, container = built.server()
    settings = settings_of(built.environment(container))
    probes = {
        name: probe["httpGet"]["path"] for name, probe in container.items() if "Probe" in name
    }
    with TestClient(create_app(settings, FakeBackend(), Metrics())) as client:
        assert {client.get(path).status_code for path in probes.values()} == {200}
    assert probes == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    # Liveness is no matter of a moment: a service that is killed loses what it accepted.
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_targets_of_the_dockerfile(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    _, container = built.server()
    name, _, tag = container["image"].partition(":")
    settings = settings_of(built.environment(container))
    target = tag.removesuffix("-ray")
    assert name == "purnet-serve"
    assert f"\nFROM runtime AS {target}\n" in DOCKERFILE
    assert target == ("full" if settings.device == "cuda" else "cpu")
    # What makes the difference of such an image.
    assert tag.endswith("-ray") == (settings.backend == "ray")
    assert len(re.findall(r"requirements\.py .*\$\{EXTRA\} >", DOCKERFILE)) == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_user_is_the_image_s(manifests: Build, overlay: str) -> None:
    for pod in manifests(overlay).pods():
        context = pod["spec"]["securityContext"]
        assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in DOCKERFILE


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stop_waits_longer_than_the_drain(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    spec, container = built.server()
    settings = settings_of(built.environment(container))
    sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = sleep_s + settings.drain_delay_s + settings.drain_s + GRACE_S
    assert spec["terminationGracePeriodSeconds"] > needed_s
    # Longer than a pod that is no longer ready can still be in use.
    readiness = container["readinessProbe"]
    assert sleep_s > readiness["periodSeconds"] * readiness["failureThreshold"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rollout_waits_for_the_slowest_load(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    settings = settings_of(built.environment(built.server()[1]))
    deployment = built.one("Deployment")["spec"]
    assert deployment["progressDeadlineSeconds"] > settings.load_timeout_s
    assert deployment["minReadySeconds"] > 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_memory_limit_holds_all_that_the_settings_allow(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    spec, container = built.server()
    settings = settings_of(built.environment(container))
    scratch = sum(
        quantity_bytes(volume["emptyDir"]["sizeLimit"])
        for volume in spec["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    )
    worker = 0 if settings.backend == "ray" else WORKER_BYTES[settings.device]
    resources = container["resources"]
    # Two workers while the model is being changed.
    needed = memory_ceiling_bytes(settings) + 2 * worker + scratch
    assert needed <= quantity_bytes(resources["limits"]["memory"])
    assert settings.decode_threads is not None
    assert settings.encode_threads is not None
    for resource in ("cpu", "memory"):
        assert resources["requests"][resource] == resources["limits"][resource]


def test_a_gpu_is_reserved_and_reached(manifests: Build) -> None:
    built = manifests("gpu")
    spec, container = built.server()
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [taint["key"] for taint in spec["tolerations"]] == ["nvidia.com/gpu"]
    assert built.one("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


# --- each other


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_has_a_name_and_namespace_of_its_own(manifests: Build, overlay: str) -> None:
    objects = manifests(overlay).objects
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    spaces = {f["metadata"].get("namespace") for f in objects if f["kind"] != "Namespace"}
    assert spaces == {"purnet"}
    assert manifests(overlay).one("Namespace")["metadata"]["name"] == "purnet"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_pods(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    labels = [pod["metadata"]["labels"] for pod in built.pods()]
    selectors = [
        *(service["spec"]["selector"] for service in built.of("Service")),
        *(budget["spec"]["selector"]["matchLabels"] for budget in built.of("PodDisruptionBudget")),
        *(policy["spec"]["podSelector"]["matchLabels"] for policy in built.of("NetworkPolicy")),
        *(monitor["spec"]["selector"]["matchLabels"] for monitor in built.of("PodMonitor")),
    ]
    for selector in selectors:
        assert any(selects(selector, found) for found in labels), selector


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_has_its_own_pods_and_no_others(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    deployment = built.one("Deployment", "purnet")["spec"]
    own = deployment["selector"]["matchLabels"]
    assert own == built.one("Service", "purnet-serve")["spec"]["selector"]
    assert own == built.one("PodDisruptionBudget", "purnet")["spec"]["selector"]["matchLabels"]
    assert own == built.one("NetworkPolicy", "purnet")["spec"]["podSelector"]["matchLabels"]
    found = [pod for pod in built.pods() if selects(own, pod["metadata"]["labels"])]
    assert found == [deployment["template"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_spread_over_nodes_and_zones(manifests: Build, overlay: str) -> None:
    for pod in manifests(overlay).pods():
        labels = pod["metadata"]["labels"]
        if labels["app.kubernetes.io/component"] == "head":
            continue
        spreads = pod["spec"]["topologySpreadConstraints"]
        assert {spread["topologyKey"] for spread in spreads} == {
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        }
        for spread in spreads:
            assert selects(spread["labelSelector"]["matchLabels"], labels)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_go_one_at_a_time_when_nodes_are_emptied(manifests: Build, overlay: str) -> None:
    for budget in manifests(overlay).of("PodDisruptionBudget"):
        assert {"minAvailable", "maxUnavailable"} & budget["spec"].keys()
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_meet_the_restricted_standard_and_hold_no_token(
    manifests: Build, overlay: str
) -> None:
    built = manifests(overlay)
    labels = built.one("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in built.pods():
        spec = pod["spec"]
        head = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "head"
        # The head's autoscaler asks the API server for pods.
        assert spec.get("automountServiceAccountToken") is (None if head else False)
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all(volume.keys() <= {"name", "emptyDir", "secret"} for volume in spec["volumes"])
        assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])
        for container in containers_of(spec):
            assert container["securityContext"] == RESTRICTED


@pytest.mark.parametrize("overlay", ["base", "cpu", "gpu"])
def test_photos_come_in_and_nothing_goes_out(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    policy = built.one("NetworkPolicy", "purnet")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert policy["ingress"] == [{"ports": [{"port": "http"}]}]
    others = [found["spec"] for found in built.of("NetworkPolicy") if found["spec"] != policy]
    assert all(other["policyTypes"] == ["Ingress"] for other in others)
    open_to_all = [
        port["port"]
        for other in others
        for rule in other["ingress"]
        if not rule.get("from")
        for port in rule["ports"]
    ]
    assert not open_to_all


def test_clients_reach_no_metrics(manifests: Build) -> None:
    (service,) = manifests("base").of("Service")
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    assert service["spec"] == manifests("cpu").one("Service", "purnet-serve")["spec"]


# --- what the guide shows


@pytest.fixture
def production(tmp_path: Path) -> Path:
    """The folder of docs/kubernetes.md beside a checkout, with keys."""
    (text,) = re.findall(r"```yaml\n# production/kustomization.yaml\n(.*?)```", GUIDE, re.S)
    (tmp_path / "purnet-serve").symlink_to(ROOT)
    folder = tmp_path / "production"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text)
    (folder / "keys").write_text("0" * 64)
    return folder


def test_a_folder_of_one_s_own_changes_what_it_says(manifests: Build, production: Path) -> None:
    built = manifests(production)
    for found in built.objects:
        check_schema(found, VERSIONS[0])
    spec, container = built.server()
    assert container["image"] == "registry.example.com/purnet-serve:0.2.0-cpu"
    settings = settings_of(built.environment(container))
    assert settings.max_pixels == 12_000_000
    assert settings.metrics_port == 9100
    mounted = {mount["name"]: mount for mount in container["volumeMounts"]}["api-keys"]
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "api-keys")
    secret = built.one("Secret", volume["secret"]["secretName"])
    assert mounted["readOnly"] is True
    assert settings.api_keys_file == Path(mounted["mountPath"]) / next(iter(secret["data"]))


def test_new_keys_and_new_settings_replace_the_pods(manifests: Build, production: Path) -> None:
    before = manifests(production).one("Deployment", "purnet")
    other = production.with_name("other")
    other.mkdir()
    for file in production.iterdir():
        (other / file.name).write_text(file.read_text().replace("0" * 64, "1" * 64))
    after = manifests(other).one("Deployment", "purnet")
    assert before["spec"]["template"] != after["spec"]["template"]


def test_the_guide_names_every_kind_of_object(manifests: Build) -> None:
    for found in manifests("ray").objects:
        assert found["kind"] in GUIDE, found["kind"]
