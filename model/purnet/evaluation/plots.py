"""A report as a folder: text, JSON, and pictures of curves, masks, photos and truths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from purnet.evaluation.report import Report, ScoredImage, SetResult, to_json, to_markdown
from purnet.io import make_folder, write_atomically, write_text, writing

PLOT_PIXELS = (800, 600)
"""Width and height of the precision-recall plot."""

CELL_PIXELS = (200, 150)
"""Width and height a picture of the contact sheet is fitted into."""

EXAMPLES = 3
"""Images per row of the contact sheet; each is three cells: photo, truth, map."""

_GAP = 8
_HEADING = 22
_GROUPS = ("best", "median", "worst")
_INK, _PAPER = (20, 20, 20), (255, 255, 255)

Pictures = Callable[[str], tuple[Image.Image | None, Image.Image, Image.Image]]
"""Photo (None where there is none), truth and saliency map of a stem."""


def write_report(report: Report, folder: Path, pictures: Mapping[str, Pictures]) -> list[Path]:
    """Write report.md, report.json, precision-recall.png and a contact sheet per set.

    `pictures` answers, by a set's name, with the pictures of one of its stems. The folder is made
    when it is missing. Returns what was written. Raises `WriteError` where that cannot be.
    """
    make_folder(folder)
    plot = folder / "precision-recall.png"
    precision_recall_plot(report.sets, plot)
    sheets = [folder / f"{result.name}-contact-sheet.png" for result in report.sets]
    for result, sheet in zip(report.sets, sheets, strict=True):
        contact_sheet(ranked(result.scored), pictures[result.name], sheet)
    markdown, json = folder / "report.md", folder / "report.json"
    write_text(markdown, to_markdown(report, [sheet.name for sheet in sheets]))
    write_text(json, to_json(report))
    return [markdown, json, plot, *sheets]


def precision_recall_plot(sets: Sequence[SetResult], path: Path) -> None:
    """Write one PNG of `PLOT_PIXELS` with a curve per data set over the thresholds 1..255.

    Threshold 0 takes every pixel of any map, so it is left out. Raises `WriteError`.
    """
    dpi = 100
    figure = Figure(
        figsize=(PLOT_PIXELS[0] / dpi, PLOT_PIXELS[1] / dpi), dpi=dpi, layout="constrained"
    )
    axes = figure.add_subplot()
    for result in sets:
        label = f"{result.name} (max F {result.metrics['max_f']:.3f})"
        axes.plot(result.recall[1:], result.precision[1:], label=label)
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1),
        ylim=(0, 1),
        title="Mean of the images at each of 255 thresholds",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    with writing(path):
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def ranked(scored: Sequence[ScoredImage]) -> dict[str, list[ScoredImage]]:
    """Up to `EXAMPLES` best, median and worst images by S-measure, none of them twice.

    S is the one measure of a single image that also means something where the truth is empty.
    """
    order = sorted(scored, key=lambda image: (-image.s_measure, image.stem))
    count = min(EXAMPLES, max(1, len(order) // len(_GROUPS)))
    middle = (len(order) - count) // 2
    parts = (order[:count], order[middle : middle + count], order[-count:][::-1])
    shown: set[str] = set()
    groups: dict[str, list[ScoredImage]] = {}
    for name, part in zip(_GROUPS, parts, strict=True):
        groups[name] = [image for image in part if image.stem not in shown]
        shown.update(image.stem for image in part)
    return groups


def failures(scored: Sequence[ScoredImage], count: int) -> dict[str, list[ScoredImage]]:
    """The images of the largest MAE, largest first, in rows for a contact sheet."""
    order = sorted(scored, key=lambda image: (-image.mae, image.stem))[:count]
    return {
        f"largest MAE, from {start + 1}": order[start : start + EXAMPLES]
        for start in range(0, len(order), EXAMPLES)
    }


def contact_sheet(
    rows: Mapping[str, Sequence[ScoredImage]], pictures: Pictures, path: Path
) -> None:
    """Write a PNG of rows of up to `EXAMPLES` maps below their headings, beside photo and truth.

    It is a PNG whatever `path` ends in. Raises `WriteError`.
    """
    sheet = Image.new("RGB", sheet_size(len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    row_height = 2 * _HEADING + CELL_PIXELS[1] + _GAP
    for row, (name, images) in enumerate(rows.items()):
        top = _GAP + row * row_height
        draw.text((_GAP, top), f"{name}: photo | truth | map", fill=_INK, font=font)
        for column, image in enumerate(images):
            left = _GAP + column * EXAMPLES * (CELL_PIXELS[0] + _GAP)
            text = f"{image.stem}   S {image.s_measure:.3f}   MAE {image.mae:.3f}"
            draw.text((left, top + _HEADING), text, fill=_INK, font=font)
            for cell, picture in enumerate(pictures(image.stem)):
                if picture is not None:
                    x = left + cell * (CELL_PIXELS[0] + _GAP)
                    sheet.paste(_fitted(picture), (x, top + 2 * _HEADING))
    with writing(path):
        write_atomically(path, lambda part: sheet.save(part, format="PNG"))


def sheet_size(rows: int = len(_GROUPS)) -> tuple[int, int]:
    """Width and height in pixels of a contact sheet of this many rows."""
    cells = EXAMPLES * 3
    width = _GAP + cells * (CELL_PIXELS[0] + _GAP)
    return width, _GAP + rows * (2 * _HEADING + CELL_PIXELS[1] + _GAP)


def _fitted(picture: Image.Image) -> Image.Image:
    """The whole picture inside a cell, on grey, which shows where black borders end."""
    return ImageOps.pad(picture.convert("RGB"), CELL_PIXELS, color=(128, 128, 128))
