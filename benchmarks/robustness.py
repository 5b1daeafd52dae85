"""How well masks hold for photos as people send them: `python -m benchmarks.robustness DUTS-TR`.

Takes the held-out pairs of a data set that training used (`is_held_out`), changes each photo in
one way and scores its mask, brought to the truth's size, by MAE, weighted F and S. Then it cuts
from the same photos parts in which nothing is salient and counts in how many something is found.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

import purnet
from purnet.data.copy_paste import LEAST_BACKGROUND, find_background
from purnet.data.pairs import Pair, find_pairs, is_held_out, read_truth
from purnet.evaluation.metrics import score_image
from purnet.evaluation.scoring import fitted
from purnet.imaging import open_image

Change = Callable[[Image.Image], bytes | Image.Image]

FOUND_LEVEL = 128
FOUND_PART = 0.01
"""Something is found where this part of the pixels is at or above `FOUND_LEVEL`."""
SEED = 1


def jpeg(photo: Image.Image, quality: int = 95, **options: object) -> bytes:
    """A photo as a JPEG file."""
    out = BytesIO()
    photo.save(out, "JPEG", quality=quality, **options)
    return out.getvalue()


def enlarged(photo: Image.Image, pixels: int = 12_000_000) -> bytes:
    """A photo at about this many pixels."""
    return jpeg(ImageOps.scale(photo, (pixels / (photo.width * photo.height)) ** 0.5))


def shrunk(photo: Image.Image, side: int = 64) -> bytes:
    """A photo whose longer side is `side` pixels."""
    return jpeg(ImageOps.contain(photo, (side, side)))


def turned(photo: Image.Image) -> bytes:
    """A photo stored on its side, with the EXIF entry that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter for display
    return jpeg(photo.transpose(Image.Transpose.ROTATE_90), exif=exif)


CHANGES: dict[str, Change] = {
    "as it is": jpeg,
    "64 pixels": shrunk,
    "12 megapixels": enlarged,
    "turned by EXIF": turned,
    "grey": lambda photo: jpeg(photo.convert("L")),
    "dark, a fifth of its light": lambda photo: jpeg(ImageEnhance.Brightness(photo).enhance(0.2)),
    "JPEG of quality 20": partial(jpeg, quality=20),
}


def background(photo: Image.Image, truth: np.ndarray) -> Image.Image | None:
    """A part of a photo where nothing is salient; None where a few tries find none."""
    box = find_background(Image.fromarray(truth))
    return None if box is None else photo.crop(box)


def is_found(mask: np.ndarray) -> bool:
    """Whether a mask shows anything."""
    return bool((mask >= FOUND_LEVEL).mean() >= FOUND_PART)


def score(predictor: purnet.Predictor, pairs: list[Pair], change: Change) -> list[float]:
    """Mean MAE, weighted F and S of changed photos, and in which part something is found."""
    rows = []
    for pair in pairs:
        truth = read_truth(pair.mask)
        mask = fitted(predictor.predict(change(open_image(pair.image))), truth)
        one = score_image(mask, truth)
        rows.append((one.mae, one.weighted_f, one.s_measure, is_found(mask)))
    means: list[float] = np.mean(rows, axis=0).tolist()
    return means


def score_backgrounds(predictor: purnet.Predictor, pairs: list[Pair]) -> tuple[int, float, float]:
    """Number of parts without an object, the mean of their masks, where something is found."""
    torch.manual_seed(SEED)  # `find_background` draws from torch's generator
    masks = []
    for pair in pairs:
        part = background(open_image(pair.image), read_truth(pair.mask))
        if part is not None:
            masks.append(predictor.predict(jpeg(part)))
    means = [float(mask.mean() / 255) for mask in masks]
    return len(masks), float(np.mean(means)), float(np.mean([is_found(mask) for mask in masks]))


def main() -> None:
    """Measure by options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="folder of the pairs, such as DUTS-TR")
    parser.add_argument("--checkpoint", type=Path, help="default: the weights this package ships")
    parser.add_argument("--percent", type=float, default=4.0, help="held-out part, by name")
    parser.add_argument("--at-most", type=int, help="take the first pairs only")
    options = parser.parse_args()
    keep = partial(is_held_out, percent=options.percent)
    pairs = find_pairs(options.dataset, keep=keep).pairs[: options.at_most]
    predictor = purnet.load(options.checkpoint, device="cpu")
    print(f"{len(pairs)} photos, {predictor.variant}, sha256 {predictor.sha256[:16]}\n")
    print("| photo | MAE | weighted F | S | something found |\n|---|---|---|---|---|")
    for name, change in CHANGES.items():
        mae, weighted_f, s_measure, found = score(predictor, pairs, change)
        print(f"| {name} | {mae:.4f} | {weighted_f:.4f} | {s_measure:.4f} | {found:.1%} |")
    count, mean, found = score_backgrounds(predictor, pairs)
    name = f"a part of it without an object ({count}, sides from {LEAST_BACKGROUND:.0%})"
    print(f"| {name} | {mean:.4f} | | | {found:.1%} |")


if __name__ == "__main__":
    main()
