"""What `kubectl apply -k` would send to a cluster, read as tests need it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from purnet_serve.settings import MIB, Settings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"
SCHEMAS = ROOT / "tests" / "docker" / "schemas"
"""Of the kinds that operators bring, by the fields we use."""
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest version that has all we use, and the newest whose schema is known here."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Manifests:
    """The objects of one kustomization."""

    objects: tuple[Object, ...]

    def of(self, kind: str, name: str | None = None) -> list[Object]:
        """The objects of a kind, or the one of this name."""
        return [
            found
            for found in self.objects
            if found["kind"] == kind and name in (None, found["metadata"]["name"])
        ]

    def one(self, kind: str, name: str | None = None) -> Object:
        """The only object of a kind, or of this kind and name."""
        (found,) = self.of(kind, name)
        return found

    def pods(self) -> Iterator[Object]:
        """The template of every pod: of Deployments, and of heads and workers of Ray."""
        for deployment in self.of("Deployment"):
            yield deployment["spec"]["template"]
        for service in self.of("RayService"):
            cluster = service["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                yield group["template"]

    def server(self) -> tuple[Object, Object]:
        """Spec of the service's pods, and their container."""
        spec = self.one("Deployment", "purnet")["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        return spec, container

    def environment(self, container: Object) -> dict[str, str]:
        """Variables that a container is given, by itself or from a ConfigMap."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return found | {item["name"]: item["value"] for item in container.get("env", [])}


Build = Callable[[str | Path], Manifests]
"""The fixture `manifests`."""


def build(kubectl: str, folder: Path) -> Manifests:
    """The objects of a folder, by kustomize itself. Fails with what it says."""
    command = [kubectl, "kustomize", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return Manifests(tuple(yaml.safe_load_all(run.stdout)))


def check_schema(found: Object, version: str) -> None:
    """Raises `jsonschema.ValidationError` for an object that a cluster would not take as it is."""
    schema = SCHEMAS / f"{found['kind']}.json"
    if schema.is_file():
        jsonschema.validate(found, json.loads(schema.read_text()))
        for template in Manifests((found,)).pods():
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            kubernetes_validate.validate(pod, version, strict=True)
    else:
        kubernetes_validate.validate(found, version, strict=True)


def containers_of(spec: Object) -> list[Object]:
    """The containers of a pod, sidecars included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def settings_of(variables: dict[str, str]) -> Settings:
    """The settings a container reads: those of the image, then its own. Every one must exist."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    image = dict(re.findall(r"(PURNET_\w+)=(\S+)", dockerfile))
    named = {name: value for name, value in (image | variables).items() if "PURNET_" in name}
    return Settings.model_validate(
        {name.removeprefix("PURNET_").lower(): value for name, value in named.items()}
    )


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a selector by labels finds what has these."""
    return bool(selector) and selector.items() <= labels.items()


def quantity_bytes(quantity: str) -> int:
    """`256Mi` -> 268435456."""
    number, unit = re.fullmatch(r"(\d+)([MG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": MIB, "Gi": 1024 * MIB}[unit]
