"""Draw the masks in `masks/` from the outlines beside them: `python tests/data/draw_masks.py`."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

MASKS = Path(__file__).parent / "masks"
FINER = 8  # Pillow's polygons end on whole pixels; drawn this much larger, points may be fractions


def draw(outline_file: Path) -> Image.Image:
    """The mask of one outline file: mode `L`, 255 where at least half of a pixel is inside."""
    drawing = json.loads(outline_file.read_text(encoding="utf-8"))
    width, height = drawing["width"], drawing["height"]
    large = Image.new("L", (width * FINER, height * FINER))
    for outline in drawing["outlines"]:
        # Outlines count from pixel centres, Pillow from pixel corners.
        corners = [((x + 0.5) * FINER, (y + 0.5) * FINER) for x, y in outline]
        ImageDraw.Draw(large).polygon(corners, fill=255)
    return large.reduce(FINER).point(lambda level: 255 if level >= 128 else 0)


if __name__ == "__main__":
    for outline_file in sorted(MASKS.glob("*.json")):
        draw(outline_file).save(outline_file.with_suffix(".png"), optimize=True)
