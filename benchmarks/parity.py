"""How far each way to a mask is from eager float32: `python -m benchmarks.parity PHOTOS`.

On a folder of photos, with the shipped weights: the engine of CPUs in both precisions, and JPEGs
decoded at reduced scale. For the last the photos are first enlarged, since only large ones are
decoded so. Differences are in grey levels of 255, over the pixels of all photos together; what
exceeds the parity gate is no default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purnet.imaging import DRAFT_FACTOR, IMAGE_SUFFIXES, open_image, read_pixels, to_pixels
from purnet.inference import openvino_engine as openvino
from purnet.inference.engine import Engine
from purnet.inference.openvino_engine import DEFAULT_EXPORT
from purnet.inference.parity import mask_difference
from purnet.inference.torch_engine import EagerEngine
from purnet.network.checkpoint import DEFAULT_CHECKPOINT, load
from purnet.network.variants import DEFAULT_VARIANT, get

SIZE = get(DEFAULT_VARIANT).input_size
JPEG_QUALITY = 90

Mask = NDArray[np.uint8]
Way = Callable[[Image.Image], Mask]


def engine_way(engine: Engine) -> Way:
    """Masks of photos as they are."""
    return lambda photo: engine(to_pixels(photo, SIZE)[None]).masks[0]


def jpeg_way(engine: Engine, factor: int, *, reduced: bool) -> Way:
    """Masks of photos enlarged so far that a reduced decode divides their sides by `factor`."""

    def mask(photo: Image.Image) -> Mask:
        scale = factor * DRAFT_FACTOR * SIZE / min(photo.size)
        large = photo.resize((round(photo.width * scale), round(photo.height * scale)))
        file = BytesIO()
        large.save(file, "JPEG", quality=JPEG_QUALITY)
        pixels = read_pixels(file.getvalue(), SIZE, reduced_jpeg=reduced).pixels
        mask: Mask = engine(pixels[None]).masks[0]
        return mask

    return mask


def computes_bfloat16() -> bool:
    """Whether OpenVINO would; where it cannot, it computes in float32 without a word."""
    core = openvino.runtime().Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def photos(folder: Path, most: int) -> Iterator[Image.Image]:
    """The first photos of a folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files[:most]:
        raise SystemExit(f"no photo taken of {folder}")
    return (open_image(path) for path in files[:most])


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="photos")
    parser.add_argument("--most", type=int, default=100, help="photos taken of it [100]")
    options = parser.parse_args()
    eager = EagerEngine(load(DEFAULT_CHECKPOINT))
    usual = engine_way(eager)
    compared = {"OpenVINO float32": (engine_way(openvino.load(DEFAULT_EXPORT)), usual)}
    if computes_bfloat16():
        short = openvino.load(DEFAULT_EXPORT, precision="bf16")
        compared["OpenVINO bfloat16"] = (engine_way(short), usual)
    else:
        print("OpenVINO bfloat16  this processor does not compute in it")
    for factor in (2, 4):
        reduced, full = (jpeg_way(eager, factor, reduced=flag) for flag in (True, False))
        compared[f"JPEG at 1/{factor}"] = (reduced, full)
    for name, (way, reference) in compared.items():
        pairs = [(way(one), reference(one)) for one in photos(options.folder, options.most)]
        found = mask_difference(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
        verdict = "passes" if found.passes else "misses"
        print(f"{name:18} {found}, {verdict} the gate ({len(pairs)} photos)")


if __name__ == "__main__":
    main()
