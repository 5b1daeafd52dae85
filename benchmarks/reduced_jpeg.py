"""What decoding large JPEGs at reduced scale changes: `python -m benchmarks.reduced_jpeg FOLDER`.

Photos of a data set with their truths are enlarged to 12 megapixels, as a camera would have taken
them: sharpened, with grain. Each is decoded in full and at reduced scale, and both masks are scored
against the truth at its own size. `FOLDER` has the layout of DUTS-TR; photos are taken in the order
of a checksum of their names.

`FOLDER --look SHEET` takes the large JPEGs of any folder as they are, and draws each of them beside
its two masks, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import purnet
from purnet.data.pairs import read_truth
from purnet.evaluation.metrics import score_image
from purnet.imaging import read_pixels, resize_mask
from purnet.imaging.pixels import DRAFT_FACTOR

PIXELS = 12_000_000
QUALITY = 92
GRAIN = 5.0
"""Standard deviation in levels of 255."""
ROW_HEIGHT = 200
SCORES = ("mae", "weighted_f", "s_measure")

Levels = NDArray[np.uint8]


def enlarged(photo: Levels, grain: NDArray[np.int8], number: int) -> bytes:
    """(H, W, 3) -> a JPEG of 12 megapixels, sharpened and with grain."""
    scale = (PIXELS / (photo.shape[0] * photo.shape[1])) ** 0.5
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    large = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(large, (0, 0), scale / 2)
    sharp = cv2.addWeighted(large, 2.0, blurred, -1.0, 0)
    rolled = np.roll(grain, 7919 * number)[: size[0] * size[1]].reshape(size[1], size[0], 1)
    noisy = cv2.add(sharp, np.repeat(rolled, 3, axis=2), dtype=cv2.CV_8U)
    done, file = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return file.tobytes()


def pairs(folder: Path, most: int) -> list[tuple[Path, Path]]:
    """Photos and truths, in the order of the checksums of their names."""
    images, masks = (next(folder.glob(f"*{kind}")) for kind in ("Image", "Mask"))
    photos = sorted(images.iterdir(), key=lambda path: zlib.crc32(path.stem.encode()) % 10_000)
    return [(photo, masks / f"{photo.stem}.png") for photo in photos[:most]]


def both_masks(predictor: purnet.Predictor, data: bytes) -> list[Levels]:
    """Masks of a JPEG that is decoded in full, and at reduced scale."""
    return [
        predictor.run(
            read_pixels(data, predictor.input_size, reduced_jpeg=reduced).pixels[None]
        ).masks[0]
        for reduced in (False, True)
    ]


def look(predictor: purnet.Predictor, folder: Path, sheet: Path) -> None:
    """Draw photo | mask in full | mask at reduced scale of each JPEG that would be reduced."""
    rows: list[Levels] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in {".jpg", ".jpeg"}:
            continue
        with Image.open(path) as photo:
            # Pillow reduces by halves, to no less than DRAFT_FACTOR times what the network sees.
            if min(photo.size) < 2 * DRAFT_FACTOR * predictor.input_size:
                continue
            size = round(photo.width * ROW_HEIGHT / photo.height), ROW_HEIGHT
            pictures = [photo.convert("RGB").resize(size)]
        masks = both_masks(predictor, path.read_bytes())
        apart = np.abs(masks[0].astype(int) - masks[1]).mean()
        print(f"{path.stem}: {apart:.2f}/255 apart")
        pictures += [Image.fromarray(mask).resize(size).convert("RGB") for mask in masks]
        rows.append(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    if not rows:
        raise SystemExit(f"No JPEG below {folder} is large enough to be decoded at reduced scale.")
    width = max(row.shape[1] for row in rows)
    filled = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.concatenate(filled)).save(sheet)


def main() -> None:
    """Score, and print the means and how far apart they are; or draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=500, help="photos [%(default)s]")
    parser.add_argument("--skip", type=int, default=0, help="of them, from the first [%(default)s]")
    parser.add_argument("--out", type=Path, help="file for a line of JSON a photo")
    parser.add_argument("--look", type=Path, metavar="SHEET", help="draw masks into this file")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    predictor = purnet.load()
    if options.look is not None:
        look(predictor, options.folder, options.look)
        return
    rng = np.random.default_rng(0)
    grain = rng.normal(0, GRAIN, PIXELS + 100_000).round().clip(-127, 127).astype(np.int8)
    rows: list[tuple[list[float], list[float], float]] = []
    for number, (photo, mask) in enumerate(pairs(options.folder, options.most)[options.skip :]):
        truth = read_truth(mask)
        data = enlarged(np.asarray(Image.open(photo).convert("RGB")), grain, number)
        maps, scores = both_masks(predictor, data), []
        for map_ in maps:
            levels = resize_mask(map_, (truth.shape[1], truth.shape[0]))
            score = score_image(levels, truth)
            scores.append([float(getattr(score, name)) for name in SCORES])
        apart = float(np.abs(maps[0].astype(int) - maps[1]).mean())
        rows.append((scores[0], scores[1], apart))
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps([photo.stem, *rows[-1]]) + "\n")
    full, less = (np.array([row[which] for row in rows]) for which in (0, 1))
    print(f"{len(rows)} photos of 12 megapixels\n")
    print("| | in full | at reduced scale | difference |\n|---|---:|---:|---:|")
    for at, name in enumerate(SCORES):
        before, after = full[:, at].mean(), less[:, at].mean()
        error = (less - full)[:, at].std() / len(rows) ** 0.5
        print(f"| {name} | {before:.4f} | {after:.4f} | {after - before:+.5f} ± {error:.5f} |")
    print(f"\nMasks are {np.mean([row[2] for row in rows]):.2f}/255 apart on average.")


if __name__ == "__main__":
    main()
