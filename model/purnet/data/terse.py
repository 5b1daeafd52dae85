"""How settings show themselves: by what a run's resume file tells one recipe from another."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any


class TerseRepr:
    """Shows a field of `repr=False` only where it is not at its default.

    A run is resumed by the text of its recipe: a setting that is added later leaves the text of
    recipes without it as it was, and so their runs.
    """

    def __repr__(self) -> str:
        shown = (
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)  # type: ignore[arg-type]
            if one.repr or getattr(self, one.name) != _default(one)
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()
