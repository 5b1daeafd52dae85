"""The parameters of `POST /v1/mask`: what they are called, what they may be, how they are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

from purnet_serve.errors import ParameterError
from purnet_serve.images.codec import Options

PARAMETERS = ("output", "size", "threshold")
OUTPUTS = ("mask", "cutout")
SIZES = ("original", "model")
MAX_THRESHOLD = 255
TIMEOUT_HEADER = "X-Timeout-Ms"
MIN_TIMEOUT_MS = 100
"""Less would only ever buy 504s."""

_LONGEST_SHOWN = 40


def parse_options(items: Iterable[tuple[str, str]]) -> Options:
    """Read query parameters and form fields. Raises `ParameterError`, naming the first bad one."""
    given: dict[str, str] = {}
    for name, value in items:
        if name not in PARAMETERS:
            raise ParameterError(
                shown(name),
                f"There is no parameter {shown(name)!r}; there are {', '.join(PARAMETERS)}.",
            )
        if name in given:
            raise ParameterError(name, f"The parameter {name!r} is given more than once.")
        given[name] = value
    threshold = given.get("threshold")
    return Options(
        output=cast("Literal['mask', 'cutout']", _choice("output", given, OUTPUTS)),
        size=cast("Literal['original', 'model']", _choice("size", given, SIZES)),
        threshold=None if threshold is None else _whole("threshold", threshold, 0, MAX_THRESHOLD),
    )


def parse_timeout_s(value: str | None, default_s: float, most_s: float) -> float:
    """`X-Timeout-Ms` in seconds, or the default. Raises `ParameterError`."""
    if value is None:
        return default_s
    return _whole(TIMEOUT_HEADER, value, MIN_TIMEOUT_MS, int(most_s * 1000)) / 1000


def shown(text: str) -> str:
    """A stranger's text, short and printable enough to be quoted back."""
    plain = "".join(char if char.isprintable() else "?" for char in text[: _LONGEST_SHOWN + 1])
    return plain if len(plain) <= _LONGEST_SHOWN else plain[:_LONGEST_SHOWN] + "…"


def _choice(name: str, given: dict[str, str], choices: tuple[str, ...]) -> str:
    value = given.get(name, choices[0])
    if value not in choices:
        raise ParameterError(
            name, f"{name!r} must be one of {', '.join(choices)}.", actual=shown(value)
        )
    return value


def _whole(name: str, value: str, least: int, most: int) -> int:
    """A whole number in plain digits; `int` would also take `+1`, `1_0` and foreign digits."""
    if value.isascii() and value.isdigit() and len(value) <= 9 and least <= int(value) <= most:
        return int(value)
    raise ParameterError(
        name, f"{name!r} must be a whole number from {least} to {most}.", actual=shown(value)
    )
