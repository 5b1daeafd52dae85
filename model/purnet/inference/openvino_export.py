"""Checkpoint -> a folder that runs without torch."""

from __future__ import annotations

import platform
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from purnet.errors import CheckpointError
from purnet.imaging import UInt8Array
from purnet.inference import openvino_engine as openvino
from purnet.inference.openvino_engine import INFO, NETWORK, REFERENCE, ExportInfo, write_info
from purnet.inference.parity import Agreement, agreement, self_check_pixels
from purnet.inference.torch_engine import reference_output, to_masks
from purnet.io import sha256_of
from purnet.network import checkpoint as checkpoints
from purnet.network.purnet import PurNet


class _ExportedNetwork(nn.Module):
    """The network with what comes before and after: uint8 pixels in, uint8 masks and flags out."""

    def __init__(self, network: PurNet) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, S, S, 3) uint8 -> masks (N, S, S) uint8, finite (N,) bool."""
        return to_masks(self._network.predict(pixels.permute(0, 3, 1, 2).float() / 255))


def export(checkpoint: Path, folder: Path) -> Agreement:
    """Write a checkpoint's export; returns how close it comes to eager float32 on the photo.

    The folder appears whole or not at all. Raises `CheckpointError` when the checkpoint does not
    load, the folder exists or cannot be made, or the export misses the parity gate.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose a folder that does not")
    network, info = checkpoints.load_with_info(checkpoint)
    pixels = self_check_pixels(info.input_size)
    expected = reference_output(network, pixels)
    if not expected.finite.all():
        raise CheckpointError(f"{checkpoint}: the mask of the bundled photo is not finite")
    reference = expected.masks[0]
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
            versions = _convert(network, pixels, part / NETWORK)
        except Exception as error:  # OpenVINO's converter has no closed set of errors
            raise CheckpointError(f"OpenVINO cannot convert {checkpoint}: {error}") from error
        Image.fromarray(reference).save(part / REFERENCE)
        write_info(
            part,
            ExportInfo(
                variant=info.variant,
                input_size=info.input_size,
                sha256=sha256_of(checkpoint),
                versions=versions,
            ),
        )
        close = agreement(openvino.load(part)(pixels).masks[0], reference)
        if not close.holds:
            raise CheckpointError(f"{checkpoint}: its export differs from eager float32 by {close}")
        part.chmod(0o755)
        _move(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return close


def _convert(network: PurNet, pixels: UInt8Array, path: Path) -> dict[str, str]:
    """Write the network as `path` with its `.bin` beside it; return the versions that made it."""
    runtime = openvino.runtime()
    size = pixels.shape[1]
    with torch.inference_mode(), warnings.catch_warnings():
        # OpenVINO traces the module. torch would rather have it exported, which takes ten times as
        # long with a free batch size, and warns of checks of image sides, which are fixed here.
        warnings.simplefilter("ignore")
        converted = runtime.convert_model(
            _ExportedNetwork(network).eval(),
            example_input=torch.from_numpy(pixels.repeat(2, axis=0)),
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
