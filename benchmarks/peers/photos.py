"""What is sent: photos of a folder as they are, the same at 12 megapixels, and a mixture."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from purnet.io import write_atomically

SMALL_PHOTOS, LARGE_PHOTOS, GATE_PHOTOS = 64, 6, 10
LARGE_SHARE = 8
"""One photo in so many of a mixture has 12 megapixels."""

_SEED = 7
_LARGE_SIZE = 4000, 3000
_GRAIN = 5.0
"""Standard deviation in levels: a camera's noise, without which the file is small."""
_ORIENTATION_TAG = 0x0112


def photos_of(folder: Path, work: Path, mixes: list[str]) -> dict[str, list[Path]]:
    """Files of each mix; a mix is drawn from uniformly. Large ones are made once, in `work`."""
    small = _chosen(folder, SMALL_PHOTOS, _SEED)
    found = {"small": small}
    if set(mixes) - {"small"}:
        large = [_enlarged(path, work / "photos", number) for number, path in _numbered(small)]
        each = (LARGE_SHARE - 1) * len(large)
        repeated = [small[number % len(small)] for number in range(each)]
        found |= {"12mp": large, "mixed": [*repeated, *large]}
    return {mix: found[mix] for mix in mixes}


def gate_photos(folder: Path) -> list[bytes]:
    """Ten: eight as they are, one turned by EXIF, one grey."""
    *plain, turned, grey = _chosen(folder, GATE_PHOTOS, _SEED + 1)
    bodies = [path.read_bytes() for path in plain]
    with Image.open(turned) as image:
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = 6
        image.save(out := BytesIO(), "JPEG", quality=90, exif=exif)
        bodies.append(out.getvalue())
    with Image.open(grey) as image:
        image.convert("L").save(out := BytesIO(), "JPEG", quality=90)
        bodies.append(out.getvalue())
    return bodies


def _numbered(small: list[Path]) -> list[tuple[int, Path]]:
    return list(enumerate(small[:LARGE_PHOTOS]))


def _chosen(folder: Path, most: int, seed: int) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(paths) < GATE_PHOTOS:
        raise SystemExit(f"{folder} has {len(paths)} JPEG photos; {GATE_PHOTOS} are needed")
    return random.Random(seed).sample(paths, min(most, len(paths)))


def _enlarged(source: Path, folder: Path, seed: int) -> Path:
    """A landscape JPEG of 4000 x 3000 pixels and about 3 MB."""
    path = folder / f"{source.stem}-12mp.jpg"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        rgb = image.convert("RGB")
    if rgb.height > rgb.width:
        rgb = rgb.transpose(Image.Transpose.ROTATE_90)
    levels = np.asarray(rgb.resize(_LARGE_SIZE, Image.Resampling.BICUBIC), np.float32)
    grain = np.random.default_rng(seed).normal(0, _GRAIN, levels.shape[:2]).astype(np.float32)
    noisy = Image.fromarray(np.clip(levels + grain[..., None], 0, 255).astype(np.uint8))
    write_atomically(path, lambda part: noisy.save(part, "JPEG", quality=91))
    return path
