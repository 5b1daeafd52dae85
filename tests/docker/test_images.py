"""What can be known of the images without building them; docker/smoke.sh does the rest."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def requirements(*extras: str) -> list[str]:
    """What docker/requirements.py prints."""
    run = subprocess.run(
        [sys.executable, "docker/requirements.py", *extras],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return run.stdout.splitlines()


def test_the_linter_finds_nothing(program: Callable[[str], str]) -> None:
    command = [program("hadolint"), "--failure-threshold", "style", "docker/Dockerfile"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout


def test_the_cpu_image_installs_no_torch() -> None:
    names = "\n".join(requirements("openvino"))
    assert "openvino" in names
    assert "torch" not in names


def test_extras_that_name_extras_are_followed_to_their_end() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = requirements("timm")
    assert not [line for line in found if line.startswith(project["name"])]
    assert set(found) == {
        *project["dependencies"],
        *project["optional-dependencies"]["torch"],
        *(x for x in project["optional-dependencies"]["timm"] if project["name"] not in x),
    }


def test_an_unknown_extra_stops_the_build() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        requirements("none")


def test_everything_the_build_copies_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from=" not in line
        for word in line.split()[1:-1]
    }
    assert "*" in lines
    assert copied == sent
    assert all((ROOT / path).exists() for path in copied)
