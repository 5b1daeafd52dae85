"""Checkpoint -> one ONNX file, for ONNX Runtime: in browsers, on phones, in other languages.

| | name | shape | type |
|---|---|---|---|
| in | `pixels` | (N, S, S, 3) | uint8 RGB, the photo resized to the network's square |
| out | `masks` | (N, S, S) | uint8, 255 = salient |
| out | `finite` | (N,) | bool: false where the network's output held a NaN or an infinity |

Everything between, normalisation included, is in the graph. The file's metadata say what it is:
`variant`, `input_size` (S) and `sha256` of the checkpoint.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime
import torch

from purnet.errors import CheckpointError
from purnet.inference.export_source import ExportSource
from purnet.inference.parity import MaskDifference
from purnet.io import write_atomically

OPSET = 17
"""ONNX Runtime 1.13 and later read it, in browsers too; nothing the network needs is newer."""


def export(checkpoint: Path, file: Path) -> MaskDifference:
    """Write a checkpoint's ONNX file; returns how close it comes to eager float32 on the photo.

    The file appears whole or not at all. Raises `CheckpointError` when the checkpoint does not
    load, the file exists or cannot be written, or ONNX Runtime's masks miss the parity gate.
    """
    if file.suffix != ".onnx":
        raise CheckpointError(f"{file}: name a file that ends in .onnx")
    if file.exists():
        raise CheckpointError(f"{file} exists; choose a file that does not")
    source = ExportSource.load(checkpoint)
    try:
        data = _convert(source)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        masks, _ = session.run(None, {"pixels": source.pixels})
    except Exception as error:  # neither converter nor runtime has a closed set of errors
        raise CheckpointError(f"{checkpoint} cannot be converted to ONNX: {error}") from error
    close = source.check(masks[0])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, partial(Path.write_bytes, data=data))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be written: {error.strerror}") from error
    return close


def _convert(source: ExportSource) -> bytes:
    """The network as a serialised ONNX model of any batch size."""
    with (
        TemporaryDirectory() as folder,
        torch.inference_mode(),
        warnings.catch_warnings(),
    ):
        # Traced, as for OpenVINO: torch's newer exporter takes fifteen times as long for the same
        # graph, and warns of the older one.
        warnings.simplefilter("ignore")
        traced = Path(folder) / "traced.onnx"
        torch.onnx.export(
            source.graph,
            (source.example(),),
            traced,
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["masks", "finite"],
            dynamic_axes={name: {0: "N"} for name in ("pixels", "masks", "finite")},
        )
        model = onnx.load(traced)
    for side in model.graph.output[0].type.tensor_type.shape.dim[1:]:
        side.dim_value = source.input_size  # the trace leaves it open
    about = {
        "variant": source.variant,
        "input_size": str(source.input_size),
        "sha256": source.sha256,
    }
    onnx.helper.set_model_props(model, about)
    data: bytes = model.SerializeToString()
    return data
