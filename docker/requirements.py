"""Print the project's dependencies, one a line, with those of the extras named on the command line.

Lets an image install them before it sees any code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """Requirements of a `[project]` table; an extra that names the project brings its extras in."""
    own_extras = f"{project['name']}["
    found: list[str] = [*project["dependencies"]]
    todo = list(extras)
    for extra in todo:
        for requirement in project["optional-dependencies"][extra]:
            if requirement.startswith(own_extras):
                more = requirement.removeprefix(own_extras).removesuffix("]").split(",")
                todo += [name for name in more if name not in todo]
            else:
                found.append(requirement)
    return found


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    sys.stdout.write("".join(f"{line}\n" for line in requirements(table, sys.argv[1:])))
