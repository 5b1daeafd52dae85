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
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, field
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from purnet.errors import CheckpointError, OutOfMemoryError
from purnet.imaging import UInt8Array
from purnet.inference.engine import EngineOutput
from purnet.io import is_file, sha256_of

FORMAT = "purnet-openvino-1"
INFO = "export.json"
NETWORK = "model.xml"
REFERENCE = "reference.png"
FILES = (NETWORK, "model.bin", REFERENCE)

DEFAULT_EXPORT = Path(__file__).parents[1] / "weights" / "purnet-lite0-gc-openvino"
"""The shipped weights, exported."""

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
    return is_file(path / INFO)


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

    Every image is computed by itself. One that comes while nothing runs gets all threads; those
    that come together get a stream each, of one thread: threads that share an image take a
    quarter more processor time. May be called from `streams` threads at one time.

    `latency_model` and `throughput_model` are the same network, compiled for one request with all
    threads and for `streams` requests. Each takes (1, S, S, 3) uint8 and gives a mask (1, S, S)
    uint8 and a flag (1,) bool. Without `throughput_model` the other is the only stream: images that
    come together wait for each other.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, latency_model: Any, throughput_model: Any = None, *, streams: int = 1
    ) -> None:
        self.streams = streams
        self._free: SimpleQueue[Any] = SimpleQueue()
        """Requests of the streams, none of which runs."""
        self._idle_request: Any = None
        """For an image that comes while nothing runs; None where there is one stream."""
        if throughput_model is None:
            self._free.put(latency_model.create_infer_request())
        else:
            self._idle_request = latency_model.create_infer_request()
            for _ in range(streams):
                self._free.put(throughput_model.create_infer_request())
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """See `Engine`."""
        if len(pixels) == 1:
            return self._infer(pixels, comes_alone=True)
        images = [pixels[index : index + 1] for index in range(len(pixels))]
        if self.streams == 1:
            parts = [self._infer(image, comes_alone=True) for image in images]
        else:
            with ThreadPoolExecutor(min(self.streams, len(images))) as threads:
                parts = list(threads.map(self._infer, images))
        return EngineOutput(
            masks=np.concatenate([part.masks for part in parts]),
            finite=np.concatenate([part.finite for part in parts]),
        )

    def _infer(self, image: UInt8Array, *, comes_alone: bool = False) -> EngineOutput:
        """Run one image. The answer is a copy: the next call reuses OpenVINO's own memory."""
        with self._lock:
            idle = comes_alone and self._running == 0 and self._idle_request is not None
            self._running += 1
        request = self._idle_request if idle else self._free.get()
        try:
            answer = request.infer([image], share_inputs=True)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            if any(word in str(error) for word in _OUT_OF_MEMORY):
                raise OutOfMemoryError(str(error)) from error
            raise
        finally:
            if not idle:
                self._free.put(request)
            with self._lock:
                self._running -= 1
        return EngineOutput(masks=answer[0], finite=answer[1])


def load(
    folder: Path, *, threads: int | None = None, precision: Literal["f32", "bf16"] = "f32"
) -> OpenVinoEngine:
    """Compile an export for this processor, once for a lone image and once for streams.

    `threads` None leaves their number to OpenVINO: all processors it may use. What it computes in
    is up to `precision`; bfloat16 misses the parity gate (docs/operating.md has the figures).
    Raises `CheckpointError` for a network that OpenVINO does not read.
    """
    core = runtime().Core()
    options: dict[str, Any] = {
        # Without this OpenVINO computes in bfloat16 wherever the processor can.
        "INFERENCE_PRECISION_HINT": precision,
        # Threads bound to processors would meet those of another replica, or of the worker that
        # is about to take over, while other processors are idle.
        "ENABLE_CPU_PINNING": False,
    }
    throughput_options = {**options, "PERFORMANCE_HINT": "THROUGHPUT"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
        throughput_options |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
    try:
        network = core.read_model(folder / NETWORK)
        latency_model = core.compile_model(
            network, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"}
        )
        throughput_model = (
            None if threads == 1 else core.compile_model(network, "CPU", throughput_options)
        )
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO does not read {folder / NETWORK}: {error}") from error
    # A machine with fewer processors than `threads` has fewer streams.
    streams = 1 if throughput_model is None else int(throughput_model.get_property("NUM_STREAMS"))
    return OpenVinoEngine(latency_model, throughput_model, streams=streams)
