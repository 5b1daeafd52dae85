"""What people import, and the section of the README that shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from photos import scene

import purnet

README = Path(__file__).parents[2] / "README.md"


def test_the_section_of_the_readme_runs(tmp_path: Path) -> None:
    section = README.read_text().split("## Use it from Python")[1].split("\n## ")[0]
    # The other is of the client, which tests/purnet_serve runs.
    (code,) = re.findall(r"```python\n(import purnet\n.*?)```", section, re.DOTALL)
    scene(60, 40).save(tmp_path / "photo.jpg")
    scene(30, 50).save(tmp_path / "other.jpg")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert [line[:8] for line in run.stdout.splitlines()] == ["(40, 60)", "(50, 30)"]


def test_what_is_public_is_there_and_nothing_else() -> None:
    for name in purnet.__all__:
        assert getattr(purnet, name) is not None
    assert purnet.__version__ == version("purnet-serve")
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        purnet.predict  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = {"torch", "openvino", "PIL", "numpy", "pydantic"}
    code = f"import sys, purnet; print(sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
