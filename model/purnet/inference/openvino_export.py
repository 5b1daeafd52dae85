"""Checkpoint -> a folder that runs without torch."""

from __future__ import annotations

import platform
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from PIL import Image

from purnet.errors import CheckpointError
from purnet.inference import openvino_engine as openvino
from purnet.inference.export_source import ExportSource
from purnet.inference.openvino_engine import INFO, NETWORK, REFERENCE, ExportInfo, write_info
from purnet.inference.parity import MaskDifference


def export(checkpoint: Path, folder: Path) -> MaskDifference:
    """Write a checkpoint's export; returns how close it comes to eager float32 on the photo.

    The folder appears whole or not at all. Raises `CheckpointError` when the checkpoint does not
    load, the folder exists or cannot be made, or the export misses the parity gate.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose a folder that does not")
    source = ExportSource.load(checkpoint)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be made: {error.filename}: {error.strerror}"
        ) from error
    try:
        try:
            versions = _convert(source, part / NETWORK)
        except Exception as error:  # OpenVINO's converter has no closed set of errors
            raise CheckpointError(f"OpenVINO cannot convert {checkpoint}: {error}") from error
        Image.fromarray(source.reference).save(part / REFERENCE)
        write_info(
            part,
            ExportInfo(
                variant=source.variant,
                input_size=source.input_size,
                sha256=source.sha256,
                versions=versions,
            ),
        )
        close = source.check(openvino.load(part)(source.pixels).masks[0])
        part.chmod(0o755)
        _move(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return close


def _convert(source: ExportSource, path: Path) -> dict[str, str]:
    """Write the network as `path` with its `.bin` beside it; return the versions that made it."""
    runtime = openvino.runtime()
    size = source.input_size
    with torch.inference_mode(), warnings.catch_warnings():
        # OpenVINO traces the module. torch would rather have it exported, which takes ten times as
        # long with a free batch size, and warns of checks of image sides, which are fixed here.
        warnings.simplefilter("ignore")
        converted = runtime.convert_model(
            source.graph,
            example_input=source.example(),
            input=[runtime.PartialShape([-1, size, size, 3])],
        )
    # In 16 bits, as OpenVINO would store them, weights already folded with their normalisation move
    # single photos past the parity gate.
    runtime.save_model(converted, path, compress_to_fp16=False)
    return {
        "openvino": runtime.get_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _move(part: Path, folder: Path) -> None:
    """Rename, or leave what another process put there meanwhile."""
    try:
        part.rename(folder)
    except OSError:
        if not (folder / INFO).is_file():
            raise
