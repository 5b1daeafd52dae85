"""docs/promises.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = ROOT / "tests" / "purnet_serve"
NAMED = re.compile(r"`([\w/]*\.py)?(?:::(test_\w+))?`")


def rows() -> list[str]:
    table = (ROOT / "docs" / "promises.md").read_text()
    return [row for row in table.splitlines() if ".py" in row]


@pytest.mark.parametrize("row", rows())
def test_a_promise_names_tests_that_exist(row):
    path = None
    for file, test in NAMED.findall(row):
        if file:
            path = ROOT / file if file.startswith("tests/") else OWN / file
        elif not test:
            continue
        assert path is not None
        assert path.is_file(), path
        assert not test or f"def {test}(" in path.read_text(), test
