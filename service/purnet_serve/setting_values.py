"""Values of settings that are written as text: how they are read, and what is wrong with others."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, NonNegativeFloat
from pydantic_settings import NoDecode

from purnet_serve.urls import browser_origin

ImageFormat = Literal["jpeg", "png", "webp", "avif", "heif", "gif", "bmp", "tiff"]
_OTHER_NAMES = {"jpg": "jpeg", "heic": "heif", "tif": "tiff"}


def _check_devices(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?(,cuda:\d+)*", value):
        raise ValueError(
            f"there is no device {value!r}; there are auto, cpu, cuda, cuda:N and lists such "
            "as cuda:0,cuda:1"
        )
    return value


def _read_formats(value: object) -> object:
    if isinstance(value, str):
        names = [part.strip().lower() for part in value.split(",") if part.strip()]
        value = tuple(dict.fromkeys(_OTHER_NAMES.get(name, name) for name in names))
    if not value:
        raise ValueError("no format is named, so no image would be taken")
    return value


def _read_origins(value: object) -> object:
    if isinstance(value, str):
        if value.lstrip().startswith("[") or '"' in value or "'" in value:  # JSON, or quoted
            plain = ",".join(re.findall(r"[^][\s\"',]+", value))
            raise ValueError(f"write the origins with commas alone: {plain}")
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if origin not in ("*", "null") and origin != (sent := browser_origin(origin)):
            raise ValueError(f"{origin!r} matches no page; a browser sends {sent!r}")
    return value


def _read_resources(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f'not a JSON object such as {{"model_node": 1}}: {error}') from None
    return value


Devices = Annotated[str, AfterValidator(_check_devices)]
"""`auto`, `cpu`, or CUDA devices with commas between them."""
Formats = Annotated[tuple[ImageFormat, ...], NoDecode, BeforeValidator(_read_formats)]
"""Names of image formats with commas between them; `jpg`, `heic` and `tif` are taken too."""
Origins = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_read_origins), AfterValidator(_check_origins)
]
"""Origins with commas between them, each as browsers send it, or `*` or `null`."""
Resources = Annotated[dict[str, NonNegativeFloat], NoDecode, BeforeValidator(_read_resources)]
"""Names and amounts, as a JSON object."""
