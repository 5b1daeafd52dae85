from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import KUBERNETES, Build, Manifests, build

KUBECTL = 1, 27
"""The oldest release of kubectl that builds the folders, by docs/kubernetes.md."""


@pytest.fixture
def program(require: Any) -> Callable[[str], str]:
    """Path of a program: beside this Python, where packages put theirs, or on the search path."""

    def find(name: str) -> str:
        beside = Path(sys.executable).with_name(name)
        found = str(beside) if beside.is_file() else shutil.which(name)
        require(found, f"{name} is not installed")
        return found or ""

    return find


@pytest.fixture(scope="session")
def built() -> dict[Path, Manifests]:
    return {}


@pytest.fixture
def kubectl(program: Callable[[str], str], require: Any) -> str:
    """Path of a kubectl whose kustomize knows what our folders use."""
    path = program("kubectl")
    command = [path, "version", "--client", "--output=json"]
    version = json.loads(subprocess.check_output(command))["clientVersion"]
    release = int(version["major"]), int(version["minor"].rstrip("+"))
    require(release >= KUBECTL, f"kubectl {version['gitVersion']} is older than 1.27")
    return path


@pytest.fixture
def manifests(kubectl: str, built: dict[Path, Manifests]) -> Build:
    """`manifests(folder)`: what a folder makes, by its name in docker/kubernetes or its path."""

    def of(folder: str | Path) -> Manifests:
        path = KUBERNETES / folder
        if path not in built:
            built[path] = build(kubectl, path)
        return built[path]

    return of
