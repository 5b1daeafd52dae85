"""An exported network on disk: what `purnet export` writes and the OpenVINO engine reads.

| file | what |
|---|---|
| `export.json` | variant, input size, sha256 of checkpoint and files, versions |
| `model.xml`, `model.bin` | the network as OpenVINO's intermediate representation, float32 |
| `reference.png` | the bundled photo's mask by eager float32: what the engine is checked against |

Loads neither torch nor OpenVINO.
"""

from __future__ import annotations

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from purnet.errors import CheckpointError
from purnet.inference.predictor import UInt8Array
from purnet.io import sha256_of

FORMAT = "purnet-openvino-1"
INFO = "export.json"
NETWORK = "model.xml"
REFERENCE = "reference.png"
FILES = (NETWORK, "model.bin", REFERENCE)

DEFAULT_EXPORT = Path(__file__).parent.parent / "weights" / "purnet-lite0-openvino"
"""The shipped weights, exported."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class ExportInfo:
    """What an export says of itself."""

    variant: str
    input_size: Annotated[int, Field(gt=0, strict=True)]
    """Side of the square the network sees, in pixels."""
    sha256: str
    """Hex digest of the checkpoint it was made from: the model's version stays the same."""
    files: dict[str, str] = field(default_factory=dict)
    """Hex digest of each of `FILES`."""
    versions: dict[str, str] = field(default_factory=dict)
    """Libraries that made it."""


def is_export(path: Path) -> bool:
    """Whether a path is a folder that calls itself an export."""
    return (path / INFO).is_file()


def write_info(folder: Path, info: ExportInfo) -> None:
    """Describe the files that lie in the folder. They must all be there."""
    document = {"format": FORMAT, **asdict(info), "files": digests(folder)}
    (folder / INFO).write_text(json.dumps(document, indent=2) + "\n")


def read_info(folder: Path) -> ExportInfo:
    """Read an export's description and check its files against it.

    Raises `CheckpointError` for a folder that is foreign, incomplete or damaged.
    """
    try:
        document = json.loads((folder / INFO).read_text())
        found = digests(folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no whole export: {error.filename} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no export: {error}") from error
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise CheckpointError(f"{folder / INFO} does not say that it is a PurNet export ({FORMAT})")
    try:
        info = TypeAdapter(ExportInfo).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{folder / INFO}, {key}: {first['msg']}") from error
    damaged = [name for name in FILES if info.files.get(name) != found[name]]
    if damaged:
        raise CheckpointError(f"{folder} is damaged: {', '.join(damaged)} changed since the export")
    height, width = read_reference(folder).shape
    if (height, width) != (info.input_size, info.input_size):
        raise CheckpointError(
            f"{folder / INFO}, input_size: {info.input_size}, "
            f"but the network's masks are {width}x{height}"
        )
    return info


def read_reference(folder: Path) -> UInt8Array:
    """(S, S): the bundled photo's mask by eager float32."""
    with Image.open(folder / REFERENCE) as image:
        return np.array(image, dtype=np.uint8)


def digests(folder: Path) -> dict[str, str]:
    """Hex digest of each of `FILES`."""
    return {name: sha256_of(folder / name) for name in FILES}
