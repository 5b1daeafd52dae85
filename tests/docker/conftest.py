from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import KUBERNETES, Build, Manifests, build


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
def manifests(program: Callable[[str], str], built: dict[Path, Manifests]) -> Build:
    """`manifests(folder)`: what a folder makes, by its name in docker/kubernetes or its path."""

    def of(folder: str | Path) -> Manifests:
        path = KUBERNETES / folder
        if path not in built:
            built[path] = build(program("kubectl"), path)
        return built[path]

    return of
