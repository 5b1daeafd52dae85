"""Draw the photo that the web page offers, and its cutout by the shipped weights.

Run it from the root. The photo is a cup of coffee by Rachel Michetti, which scikit-image brings
along without copyright restrictions (CC0).
"""

from __future__ import annotations

from pathlib import Path

import skimage.data
from PIL import Image

import purnet
from purnet.imaging import cutout

PAGE = Path(__file__).parents[1] / "service" / "purnet_serve" / "page"


def main() -> None:
    """Write both files."""
    photo = Image.fromarray(skimage.data.coffee())
    photo.save(PAGE / "sample.jpg", quality=86, optimize=True, progressive=True, subsampling=0)
    cut = cutout(photo, Image.fromarray(purnet.load().predict(photo)))
    cut.save(PAGE / "sample-cutout.webp", quality=84, method=6)


if __name__ == "__main__":
    main()
