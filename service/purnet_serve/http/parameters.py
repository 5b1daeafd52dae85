"""The parameters of a request: what they may be, and the error that names a bad one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from purnet.imaging import WEBP_MAX_SIDE
from purnet_serve.errors import ParameterError
from purnet_serve.images.codec import Options

TIMEOUT_HEADER = "X-Timeout-Ms"
MIN_TIMEOUT_MS = 100
"""With less, no request could be answered in time."""
MAX_THRESHOLD = 255
MAX_PARAMETERS = 64
"""Twice as many as any route has: what a client repeats or makes up costs next to nothing."""
_MAX_QUOTED_CHARS = 40


class Parameters(BaseModel):
    """The parameters of a route, in the query or as fields of the form, each given once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, items: Sequence[tuple[str, str]]) -> Self:
        """Read query parameters and form fields together. Raises `ParameterError`."""
        require_single(items)
        try:
            return cls.model_validate(dict(items))
        except ValidationError as error:
            raise bad_parameter(error.errors()[0], cls.model_fields) from None


class MaskOptions(Parameters):
    """The parameters of `POST /v1/mask`, in the query or as fields of the form."""

    output: Literal["mask", "cutout"] = Field(
        "mask", description="The mask alone, or the photo cut out by it.", examples=["cutout"]
    )
    size: Literal["original", "model"] = Field(
        "original",
        description="The photo's displayed size, or the square the network sees.",
        examples=["original"],
    )
    threshold: Annotated[int, Field(ge=0, le=MAX_THRESHOLD)] | SkipJsonSchema[None] = Field(
        None,
        description="Makes the mask 255 from this level up, 0 below; without it the mask is soft.",
        examples=[128],
    )

    format: Literal["png", "webp"] = Field(
        "png",
        description="PNG, or WebP: masks without loss, cutouts with exact alpha, sides up to "
        f"{WEBP_MAX_SIDE} pixels. Without it, `Accept: image/webp` gives WebP.",
        examples=["webp"],
    )

    @field_validator("threshold", mode="before")
    @classmethod
    def _read_threshold(cls, value: str) -> int:
        return _whole_number(value, 0, MAX_THRESHOLD)

    def codec_options(self, accept: str = "") -> Options:
        """The same for the codec; the header `Accept` decides the format where none is named."""
        named = "format" in self.model_fields_set
        image_format = "webp" if not named and prefers_webp(accept) else self.format
        return Options(self.output, self.size, self.threshold, image_format)


def prefers_webp(accept: str) -> bool:
    """Whether an `Accept` header names `image/webp` and gives PNG a lower weight (RFC 9110)."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        try:
            weights[media_type] = float(weight)
        except ValueError:
            continue
    png = next((weights[t] for t in ("image/png", "image/*", "*/*") if t in weights), 0.0)
    return weights.get("image/webp", 0.0) > png


def parse_timeout_s(values: Sequence[str], default_s: float, most_s: float) -> float:
    """`X-Timeout-Ms` in seconds, or the default where it was not sent. Raises `ParameterError`."""
    require_single([(TIMEOUT_HEADER, value) for value in values])
    if not values:
        return default_s
    (value,) = values
    try:
        return _whole_number(value, MIN_TIMEOUT_MS, int(most_s * 1000)) / 1000
    except PydanticCustomError as error:
        reason = error.message()
        problem = {"loc": (TIMEOUT_HEADER,), "msg": reason, "input": value}
        raise bad_parameter(problem, (TIMEOUT_HEADER,)) from None


def require_single(items: Sequence[tuple[str, str]]) -> None:
    """Raises `ParameterError` for a parameter that is given more than once, and for too many."""
    if len(items) > MAX_PARAMETERS:
        name = shorten(items[MAX_PARAMETERS][0])
        raise ParameterError(name, f"There are more than {MAX_PARAMETERS} parameters.")
    seen: set[str] = set()
    for name, _ in items:
        if name in seen:
            name = shorten(name)
            raise ParameterError(name, f"The parameter {name!r} is given more than once.")
        seen.add(name)


def bad_parameter(problem: Mapping[str, Any], known: Iterable[str]) -> ParameterError:
    """One of pydantic's error details as an error of ours; `known` are the route's parameters."""
    name = shorten(str(problem["loc"][-1]))
    if problem.get("type") == "extra_forbidden":
        return ParameterError(
            name, f"There is no parameter {name!r}; there are {', '.join(known)}."
        )
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    actual = None if problem.get("type") == "missing" else shorten(str(problem["input"]))
    return ParameterError(name, f"{name!r} {reason}.", actual=actual)


def shorten(text: str) -> str:
    """A client's text, short and printable enough to be quoted back."""
    plain = "".join(char if char.isprintable() else "?" for char in text[: _MAX_QUOTED_CHARS + 1])
    return plain if len(plain) <= _MAX_QUOTED_CHARS else plain[:_MAX_QUOTED_CHARS] + "…"


def _whole_number(value: str, least: int, most: int) -> int:
    """A whole number in plain digits; `int` would also take `+1`, `1_0` and foreign digits."""
    if value.isascii() and value.isdigit() and len(value) <= 9 and least <= int(value) <= most:
        return int(value)
    bounds = {"least": least, "most": most}
    message = "must be a whole number from {least} to {most}"
    raise PydanticCustomError("whole_number", message, bounds)
