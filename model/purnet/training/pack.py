"""The pairs of a recipe in a few small files, for a machine that has no network.

    python -m purnet.training.pack --data DATA --out OUT [--recipe NAME] [--side 320] [--quality 90]

writes `OUT/pack-00.tar`, `OUT/pack-01.tar` and so on, each small enough to be sent by itself.
`purnet.training.unpack` makes of them `data/`, to train on, and `superpixels/`, its cache. Pieces
of an earlier pack in OUT are removed.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from PIL import Image

from purnet.cpus import available_cpus
from purnet.data.pairs import Pair, find_pairs, read_truth
from purnet.errors import ModelError
from purnet.imaging import open_image
from purnet.io import make_folder, write_atomically, writing
from purnet.training.recipe import Recipe, load_recipe
from purnet.training.sources import load_data

SIDE = 320
"""Longer side of a packed photo, in pixels: what prediction sees."""
MASK_STEP = 17
"""Between grey levels of packed masks: 16 levels are enough for soft edges, at half the bytes."""
PIECE_BYTES = 60 * 2**20
_TAR_BLOCK = 512
_TAR_END = 10_240  # a tar file ends in zeros, up to a multiple of this


class Packed(NamedTuple):
    """What was packed, and what was not."""

    pieces: list[Path]
    """The tar files."""
    skipped: list[tuple[Path, str]]
    """Files that were left out, and why."""


def pack(
    recipe: Recipe,
    root: Path,
    out: Path,
    *,
    side: int = SIDE,
    quality: int = 90,
    piece_bytes: int = PIECE_BYTES,
) -> Packed:
    """Write photos, masks and superpixels of a recipe's sources below `root` into `out`.

    Photos whose longer side has more than `side` pixels are made smaller, and become WebP of this
    quality, 0 to 100; masks are stored in 16 grey levels. File names stay, and so does the split
    into training and validation, which they decide. The same data gives the same bytes. No tar file
    is larger than `piece_bytes`; those of an earlier pack are removed. Raises `DatasetError` for a
    source without pairs and `WriteError` where `out` cannot be written.
    """
    make_folder(out)
    skipped: list[tuple[Path, str]] = []
    with writing(out), TemporaryDirectory(dir=out, prefix=".pack-") as folder:
        staging = Path(folder)
        for source in recipe.sources:
            found = find_pairs(root / source.folder)
            skipped += found.skipped
            _shrink(found.pairs, staging / "data" / source.folder, side, quality)
        load_data(recipe, staging / "data", staging / "superpixels", processes=available_cpus())
        for earlier in out.glob("pack-*.tar"):
            earlier.unlink()
        return Packed(list(_tar_files(staging, out, piece_bytes)), skipped)


def _shrink(pairs: list[Pair], folder: Path, side: int, quality: int) -> None:
    """Write pairs in the layout `image/ + mask/`."""
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()

    def write(pair: Pair) -> None:
        photo = open_image(pair.image)
        photo.thumbnail((side, side), Image.Resampling.BICUBIC)
        photo.save(folder / "image" / f"{pair.stem}.webp", quality=quality)
        mask = Image.fromarray(read_truth(pair.mask))
        mask = mask.resize(photo.size, Image.Resampling.BILINEAR)
        mask = mask.point(lambda level: round(level / MASK_STEP) * MASK_STEP)
        mask.save(folder / "mask" / f"{pair.stem}.webp", lossless=True)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, pairs))


def _tar_files(folder: Path, out: Path, piece_bytes: int) -> Iterator[Path]:
    # A photo and its mask together, so that a part of the pieces is a set, too.
    pairs: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        pairs.setdefault((path.parent.parent, path.stem), []).append(path)
    pieces: list[list[Path]] = [[]]
    size = _TAR_END
    for files in pairs.values():
        # A header, and another for a long name, then whole blocks.
        needed = sum(4 * _TAR_BLOCK + path.stat().st_size + _TAR_BLOCK for path in files)
        if pieces[-1] and size + needed > piece_bytes:
            pieces.append([])
            size = _TAR_END
        pieces[-1] += files
        size += needed
    for number, piece in enumerate(pieces):
        target = out / f"pack-{number:02}.tar"
        write_atomically(target, partial(_write_tar, piece, folder))
        yield target


def _write_tar(files: list[Path], folder: Path, target: Path) -> None:
    with tarfile.open(target, "w") as tar:
        for path in files:
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)


def main() -> None:
    """Pack by options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m purnet.training.pack", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder the sources lie in")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pieces")
    parser.add_argument("--recipe", default="lite0", help="whose sources; a name or a file")
    parser.add_argument(
        "--side", type=int, default=SIDE, help="most pixels of a photo's longer side [%(default)s]"
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=90,
        choices=range(101),
        metavar="0..100",
        help="of the photos [%(default)s]",
    )
    options = parser.parse_args()
    try:
        recipe = load_recipe(options.recipe)
        packed = pack(recipe, options.data, options.out, side=options.side, quality=options.quality)
        for path, reason in packed.skipped:
            sys.stderr.write(f"skipped {path}: {reason}\n")
        for path in packed.pieces:
            sys.stdout.write(f"{path}: {path.stat().st_size / 2**20:.1f} MiB\n")
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
