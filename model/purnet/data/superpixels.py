"""Superpixels of a photo, computed once and kept as 16-bit PNG outside the data folder.

The structural similarity loss compares regions, so regions must follow edges: SLIC (Achanta et
al., TPAMI 2012) in CIELAB, by scikit-image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from purnet.data.settings import Settings
from purnet.errors import DatasetError
from purnet.imaging import open_image
from purnet.io import make_folder, write_atomically, writing

IGNORE = -1
"""Label of pixels that belong to no region, such as those a rotation fills in."""


class Superpixels(Settings):
    """How photos are divided; part of every cache key."""

    count: int = Field(default=200, ge=1, lt=65535)
    """Regions asked of SLIC for one photo; it returns roughly as many."""
    compactness: float = Field(default=10.0, gt=0)
    """SLIC's balance of colour against distance; scikit-image's default."""
    max_side: int = Field(default=256, ge=1)
    """SLIC runs on a photo no longer than this, in pixels: edges at network resolution suffice."""

    def regions(self, image: Image.Image) -> NDArray[np.uint16]:
        """Divide an RGB image: (h, w) uint16 labels from 0, at most `max_side` a side."""
        from skimage.segmentation import slic

        small = image.copy()
        small.thumbnail((self.max_side, self.max_side), Image.Resampling.BILINEAR)
        labels: NDArray[np.int64] = slic(
            np.asarray(small),
            n_segments=self.count,
            compactness=self.compactness,
            start_label=0,
        )
        return labels.astype(np.uint16)

    def path(self, image: Path, cache_dir: Path) -> Path:
        """Where the regions of this very photo belong: named by its bytes and by these settings."""
        digest = hashlib.sha256(self.model_dump_json().encode())
        digest.update(image.read_bytes())
        return cache_dir / f"{digest.hexdigest()[:24]}.png"

    def compute(self, image: Path, cache_dir: Path) -> Path:
        """Return the cached regions of a photo, making them first where they are missing.

        Raises `WriteError` where they cannot be written.
        """
        target = self.path(image, cache_dir)
        if not target.exists():
            regions = Image.fromarray(self.regions(open_image(image)))
            with writing(target):
                write_atomically(target, lambda part: regions.save(part, format="PNG"))
        return target

    def compute_all(
        self, images: Iterable[Path], cache_dir: Path, *, processes: int
    ) -> Iterator[Path]:
        """Yield the cached regions of many photos, in order, `processes` at a time.

        Raises `WriteError` where they cannot be written, and `DatasetError` when a process of these
        was ended from outside.
        """
        make_folder(cache_dir)
        work = partial(self.compute, cache_dir=cache_dir)
        if processes <= 1:
            yield from map(work, images)
            return
        # Forking a process whose libraries run threads can leave their locks held forever.
        try:
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                yield from pool.map(work, images, chunksize=8)
        except BrokenProcessPool as error:
            raise DatasetError(
                "a process that computes superpixels was ended from outside; memory may be short. "
                "What is done is kept: the same command goes on"
            ) from error


def load_regions(path: Path) -> NDArray[np.uint16]:
    """Read regions back: (h, w) uint16."""
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.uint16)
