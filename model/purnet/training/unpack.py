"""Pieces that `purnet.training.pack` wrote, as data to train on.

    python -m purnet.training.unpack PIECES OUT

makes `OUT/data` and `OUT/superpixels` of `PIECES/pack-*.tar`. Photos and masks become BMP files,
which take ten times the room and are read in a fraction of the time. Where there are superpixels
they stay WebP: a photo's superpixels are found by its bytes.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from purnet.cpus import available_cpus
from purnet.errors import DatasetError, ModelError, WriteError
from purnet.io import make_folder, writing

FILES_A_TASK = 64


def unpack(pieces: Path, out: Path) -> None:
    """Make a folder to train on of the pieces in a folder.

    `out` appears once it is whole. Raises `DatasetError` where there is no piece, or a broken one,
    and `WriteError` where `out` is there already or cannot be written.
    """
    if out.exists():
        raise WriteError(f"{out} is there already")
    found = sorted(pieces.glob("pack-*.tar"))
    if not found:
        raise DatasetError(f"{pieces} holds no pack-*.tar")
    make_folder(out.parent)
    with writing(out), TemporaryDirectory(dir=out.parent, prefix=".unpack-") as folder:
        staging = Path(folder) / "whole"
        (staging / "superpixels").mkdir(parents=True)
        for piece in found:
            try:
                with tarfile.open(piece) as tar:
                    tar.extractall(staging, filter="data")
            except tarfile.TarError as error:
                raise DatasetError(f"{piece} is broken: {error}") from error
        if not any((staging / "superpixels").iterdir()):
            pictures = sorted((staging / "data").rglob("*.webp"))
            with ProcessPoolExecutor(available_cpus()) as pool:
                list(pool.map(_convert_to_bmp, pictures, chunksize=FILES_A_TASK))
        staging.rename(out)


def _convert_to_bmp(picture: Path) -> None:
    try:
        image = Image.open(picture)
        image.load()
    except OSError as error:
        raise DatasetError(f"{picture.name} cannot be read: {error}") from error
    # A grey picture that WebP stored comes back in colours.
    grey = picture.parent.name == "mask"
    image.convert("L" if grey else "RGB").save(picture.with_suffix(".bmp"))
    picture.unlink()


def main() -> None:
    """Unpack by options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m purnet.training.unpack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pieces", type=Path, help="folder of the pieces")
    parser.add_argument("out", type=Path, help="folder to make")
    options = parser.parse_args()
    try:
        unpack(options.pieces, options.out)
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
