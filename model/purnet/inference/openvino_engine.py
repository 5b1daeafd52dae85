"""PurNet run by OpenVINO on the CPU, from an export: the folder that `purnet export` writes.

| file | what |
|---|---|
| `export.json` | variant, input size, sha256 of checkpoint and files, versions |
| `model.xml`, `model.bin` | the network as OpenVINO's intermediate representation, float32 |
| `reference.png` | the bundled photo's mask by eager float32: what the engine is checked against |

Loads no torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from purnet.errors import CheckpointError, OutOfMemoryError
from purnet.imaging import UInt8Array
from purnet.inference.engine import EngineOutput
from purnet.io import sha256_of

FORMAT = "purnet-openvino-1"
INFO = "export.json"
NETWORK = "model.xml"
REFERENCE = "reference.png"
FILES = (NETWORK, "model.bin", REFERENCE)

DEFAULT_EXPORT = Path(__file__).parents[1] / "weights" / "purnet-lite0-openvino"
"""The shipped weights, exported."""

IMAGES_AT_ONCE = 4
"""Fewest images of a batch computed together where there are that many.

On two processors, four at once take 13 % less time than one by one, eight 18 % less and sixteen no
less than four, while each adds some 60 MB: `purnet-lite0` takes 150 MB for one, 1.1 GB for sixteen.
"""

_OUT_OF_MEMORY = ("bad_alloc", "allocate")
"""OpenVINO wraps the allocator's exception into a RuntimeError that quotes it."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class ExportInfo:
    """An export's description, its `export.json`."""

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
    """Whether a path is a folder that describes itself as an export."""
    return (path / INFO).is_file()


def write_info(folder: Path, info: ExportInfo) -> None:
    """Describe the files of the folder, which must all be there."""
    document = {"format": FORMAT, **asdict(info), "files": digests(folder)}
    (folder / INFO).write_text(json.dumps(document, indent=2) + "\n")


def read_info(folder: Path) -> ExportInfo:
    """Read an export's description and check its files against it.

    Raises `CheckpointError` for a folder that is no export, incomplete or damaged.
    """
    try:
        document = json.loads((folder / INFO).read_text())
        actual = digests(folder)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no complete export: {error.filename} is missing"
        ) from None
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
    damaged = [name for name in FILES if info.files.get(name) != actual[name]]
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


def runtime() -> Any:
    """Import OpenVINO without its telemetry.

    The package `openvino-telemetry` comes with it, reports every import to a web analytics service
    and writes into the home folder; OpenVINO goes without when it cannot be imported. Raises
    `CheckpointError` where OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise CheckpointError(
            "an export needs OpenVINO: pip install 'purnet-serve[openvino]'"
        ) from error
    return openvino


class OpenVinoEngine:
    """A compiled network: preprocessing, network, sigmoid and truncation are in the graph.

    `compiled` takes (N, S, S, 3) uint8 and gives masks (N, S, S) uint8 and flags (N,) bool; it is
    given at most `at_once` images at a time.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, *, at_once: int = IMAGES_AT_ONCE) -> None:
        self._request = compiled.create_infer_request()
        self._at_once = at_once

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """See `Engine`."""
        parts = [
            self._infer(pixels[start : start + self._at_once])
            for start in range(0, len(pixels), self._at_once)
        ]
        return EngineOutput(
            masks=np.concatenate([part.masks for part in parts]),
            finite=np.concatenate([part.finite for part in parts]),
        )

    def _infer(self, pixels: UInt8Array) -> EngineOutput:
        """Run a few images. Answers are copies: the next call reuses OpenVINO's own memory."""
        try:
            answer = self._request.infer([pixels], share_inputs=True)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            if any(word in str(error) for word in _OUT_OF_MEMORY):
                raise OutOfMemoryError(str(error)) from error
            raise
        return EngineOutput(masks=answer[0], finite=answer[1])


def load(
    folder: Path, *, threads: int | None = None, precision: Literal["f32", "bf16"] = "f32"
) -> OpenVinoEngine:
    """Compile an export for this processor.

    `threads` None leaves their number to OpenVINO: all processors it may use. What it computes in
    is up to `precision`; bfloat16 misses the parity gate (docs/operating.md has the figures).
    Raises `CheckpointError` for a network that OpenVINO does not read.
    """
    openvino = runtime()
    options: dict[str, Any] = {
        # Without this OpenVINO computes in bfloat16 wherever the processor can.
        "INFERENCE_PRECISION_HINT": precision,
        # One request at a time, with all threads on it.
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(folder / NETWORK, "CPU", options)
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO does not read {folder / NETWORK}: {error}") from error
    return OpenVinoEngine(compiled, at_once=max(IMAGES_AT_ONCE, threads or 0))
