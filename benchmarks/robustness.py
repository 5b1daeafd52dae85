"""How well masks hold for photos as people send them: `python -m benchmarks.robustness DUTS-TR`.

Takes the held-out pairs of a data set that training used (`is_held_out`), changes each photo in
one way and scores its mask, brought to the truth's size, by MAE, weighted F, S and, cut at
`FOUND_LEVEL`, intersection over union; photos as they are also by the size of their object. Then
it cuts from the same photos parts in which nothing is salient and counts in how many something is
found. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

import purnet
from purnet.data.copy_paste import MIN_BACKGROUND, find_background
from purnet.data.pairs import TRUTH_ABOVE, Pair, find_pairs, is_held_out, read_truth
from purnet.errors import ModelError
from purnet.evaluation.metrics import ImageScore, score_image
from purnet.evaluation.scoring import resize_to
from purnet.imaging import UInt8Array, open_image

Change = Callable[[Image.Image], bytes | Image.Image]

FOUND_LEVEL = 128
FOUND_PART = 0.01
"""Something is found where this part of the pixels is at or above `FOUND_LEVEL`, of 255."""
SEED = 1
OBJECT_PARTS = (0.0, 0.05, 0.15, 0.3, 0.5, 1.0)
"""Bounds of the classes of objects, as parts of the photo."""


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
    "64 pixels": shrunk,
    "12 megapixels": enlarged,
    "turned by EXIF": turned,
    "grey": lambda photo: jpeg(photo.convert("L")),
    "dark, a fifth of its light": lambda photo: jpeg(ImageEnhance.Brightness(photo).enhance(0.2)),
    "JPEG of quality 20": partial(jpeg, quality=20),
}


def background(photo: Image.Image, truth: UInt8Array) -> Image.Image | None:
    """A part of a photo where nothing is salient; None where a few tries find none."""
    box = find_background(Image.fromarray(truth))
    return None if box is None else photo.crop(box)


def is_found(mask: UInt8Array) -> bool:
    """Whether a mask shows anything."""
    return bool((mask >= FOUND_LEVEL).mean() >= FOUND_PART)


def iou(mask: UInt8Array, truth: UInt8Array) -> float:
    """Intersection over union of mask and truth, both cut; 1 where both are empty."""
    cut, salient = mask >= FOUND_LEVEL, truth > TRUTH_ABOVE
    union = np.count_nonzero(cut | salient)
    return float(np.count_nonzero(cut & salient) / union) if union else 1.0


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of one photo."""

    score: ImageScore
    iou: float
    """Of the mask, cut at `FOUND_LEVEL`, with the truth."""
    found: bool
    object_part: float
    """Of the photo, that the object of the truth takes."""


def score(predictor: purnet.Predictor, pairs: list[Pair], change: Change) -> list[Scored]:
    """Scores of changed photos, in the order of the pairs."""
    rows = []
    for pair in pairs:
        truth = read_truth(pair.mask)
        mask = resize_to(predictor.predict(change(open_image(pair.image))), truth)
        part = float((truth > TRUTH_ABOVE).mean())
        rows.append(Scored(score_image(mask, truth), iou(mask, truth), is_found(mask), part))
    return rows


def mean_scores(rows: list[Scored]) -> tuple[float, float, float]:
    """MAE, weighted F and S."""
    scores = [row.score for row in rows]
    means = np.mean([(one.mae, one.weighted_f, one.s_measure) for one in scores], axis=0)
    mae, weighted_f, s_measure = means.tolist()
    return mae, weighted_f, s_measure


def by_object(rows: list[Scored]) -> dict[str, list[Scored]]:
    """Scores by the size of the object, named for the table."""
    classes = {}
    for least, below in pairwise(OBJECT_PARTS):
        those = [row for row in rows if least < row.object_part <= below]
        classes[f"object of {least:.0%} to {below:.0%} of the photo ({len(those)})"] = those
    return classes


def table_row(name: str, rows: list[Scored]) -> str:
    """A line of the table; empty cells where no photo is."""
    if not rows:
        return f"| {name} | | | | | |"
    mae, weighted_f, s_measure = mean_scores(rows)
    overlap = sum(row.iou for row in rows) / len(rows)
    found = sum(row.found for row in rows) / len(rows)
    numbers = " | ".join(f"{value:.4f}" for value in (mae, weighted_f, s_measure, overlap))
    return f"| {name} | {numbers} | {found:.1%} |"


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
    try:
        pairs = find_pairs(options.dataset, keep=keep).pairs[: options.at_most]
        predictor = purnet.load(options.checkpoint, device="cpu")
    except ModelError as error:
        raise SystemExit(str(error)) from None
    print(f"{len(pairs)} photos, {predictor.variant}, sha256 {predictor.sha256[:16]}\n")
    print("| photo | MAE | weighted F | S | IoU | something found |\n|---|---|---|---|---|---|")
    rows = score(predictor, pairs, lambda photo: photo)
    print(table_row("as it is", rows), flush=True)
    for name, those in by_object(rows).items():
        print(table_row(name, those))
    for name, change in CHANGES.items():
        print(table_row(name, score(predictor, pairs, change)), flush=True)
    count, mean, found = score_backgrounds(predictor, pairs)
    name = f"a part of it without an object ({count}, sides from {MIN_BACKGROUND:.0%})"
    print(f"| {name} | {mean:.4f} | | | | {found:.1%} |")


if __name__ == "__main__":
    main()
