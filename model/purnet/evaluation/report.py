"""The report of an evaluation: its values, as JSON, on the terminal and as Markdown.

Beside our numbers stand those of the PurNet paper, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from purnet.evaluation.metrics import METRICS, PREPARATION, SOFT, Metric

_MAX_NAMED = 10
"""Files listed on the terminal; the JSON file has them all."""

SOURCE = (
    "Li, Su, Xia, Ma, Tian: Salient Object Detection with Purificatory Mechanism and Structural "
    "Similarity Loss, IEEE Transactions on Image Processing 30 (2021); trained on DUTS-TR"
)

IMAGES = {
    "ECSSD": 1000,
    "DUT-OMRON": 5168,
    "PASCAL-S": 850,
    "HKU-IS": 4447,
    "DUTS-TE": 5019,
    "XPIE": 10000,
}
"""Images of the paper's six data sets as published; another number is worth a remark."""

COLUMNS = ("mae", "weighted_f", "purnet_f")
"""Which of our metrics the paper's columns MAE, wF and F are."""

PUBLISHED = {
    "ResNet-50": {
        "ECSSD": (0.035, 0.907, 0.928),
        "DUT-OMRON": (0.051, 0.747, 0.776),
        "PASCAL-S": (0.070, 0.805, 0.847),
        "HKU-IS": (0.031, 0.889, 0.904),
        "DUTS-TE": (0.039, 0.817, 0.829),
        "XPIE": (0.041, 0.843, 0.876),
    },
    "VGG-16": {
        "ECSSD": (0.040, 0.892, 0.920),
        "DUT-OMRON": (0.054, 0.730, 0.768),
        "PASCAL-S": (0.076, 0.798, 0.841),
        "HKU-IS": (0.036, 0.870, 0.894),
        "DUTS-TE": (0.043, 0.797, 0.816),
        "XPIE": (0.044, 0.830, 0.868),
    },
}
"""Backbone -> data set -> its numbers in the order of `COLUMNS`."""


def canonical_name(name: str) -> str | None:
    """`hku_is` -> `HKU-IS`: a set of the paper as the paper writes it, None for another name."""

    def letters(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalnum())

    return next((known for known in IMAGES if letters(known) == letters(name)), None)


def published_scores(name: str) -> tuple[int | None, dict[str, dict[str, float]]]:
    """Number of images of a set as published, and the paper's numbers by backbone and metric."""
    scores = {
        backbone: dict(zip(COLUMNS, table[name], strict=True))
        for backbone, table in PUBLISHED.items()
        if name in table
    }
    return IMAGES.get(name), scores


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoredImage(_Value):
    """Scores of one image, for those who want to look at it."""

    stem: str
    mae: float
    weighted_f: float
    s_measure: float


class LeftOut(_Value):
    """A file that was not scored."""

    file: str
    reason: str


class SetResult(_Value):
    """One data set, scored."""

    name: str
    """The paper's name of the set where it has one, else its folder's."""
    folder: str
    images: int
    metrics: dict[str, float]
    """By the keys of `Report.conventions`."""
    precision: list[float]
    """At thresholds 0..255."""
    recall: list[float]
    """At thresholds 0..255."""
    soft: float
    """Mean part of the maps' pixels that are neither salient nor not (`metrics.SOFT`)."""
    truth_soft: float
    """That of their truths."""
    scored: list[ScoredImage]
    empty_truths: list[str] = []
    """Stems of scored images whose truth has nothing salient."""
    missing: list[str]
    """Stems that have a truth but no prediction."""
    left_out: list[LeftOut]
    published_images: int | None
    """How many images the set has as published; None for a set without a name."""
    published: dict[str, dict[str, float]]
    """The paper's numbers by backbone; empty for a set it does not report."""

    @property
    def title(self) -> str:
        """Name and number of images, with a remark on what makes the scores mean something else.

        That is a copy that is not the published one, and truths that are all empty.
        """
        title = f"{self.name}: {self.images} images"
        if self.published_images not in {None, self.images}:
            title += f" of the {self.published_images} published"
        if len(self.empty_truths) == self.images:
            title += ", and nothing is salient in any truth"
        return title

    @property
    def sharpness(self) -> str:
        """How soft the maps are beside their truths, as a sentence."""
        low, high = SOFT
        return (
            f"Pixels of {low} to {high} of 255: {self.soft:.1%} of the maps, "
            f"{self.truth_soft:.1%} of the truths"
        )

    @property
    def complete(self) -> bool:
        """Whether every image of the set was scored."""
        return not self.missing and not self.left_out


class Report(_Value):
    """A run of `purnet evaluate`."""

    maps: str
    """Where the saliency maps came from: a folder, or the model's name, digest and device."""
    sets: list[SetResult]
    preparation: str = PREPARATION
    conventions: dict[str, str] = {metric.key: metric.convention for metric in METRICS}
    published_source: str = SOURCE


def print_report(report: Report, console: Console) -> None:
    """A table per data set, what was not scored, and how each number is made; fits 80 columns."""
    console.print(f"Maps: {report.maps}", markup=False)
    console.print(report.preparation, markup=False)
    for result in report.sets:
        console.print(_table(result))
        console.print(result.sharpness, markup=False)
        absent = [f"{file}: {reason}" for file, reason in _absent(result)]
        _print_list(f"Not scored in {result.name}", absent, console)
        _print_list("Scored, but nothing is salient in the truth", result.empty_truths, console)
    if any(result.published for result in report.sets):
        console.print(f"PurNet: as published: {report.published_source}.", markup=False)
    conventions = Table.grid(padding=(0, 2))
    for metric in METRICS:
        conventions.add_row(arrowed(metric), escape(report.conventions[metric.key]))
    console.print(conventions)


def to_json(report: Report) -> str:
    """The whole report, curves and every image included; `Report.model_validate_json` reads it."""
    return report.model_dump_json(indent=2) + "\n"


def to_markdown(report: Report, sheets: Sequence[str]) -> str:
    """The report as Markdown, beside `precision-recall.png` and the contact sheet of each set."""
    lines = ["# Evaluation", "", f"Maps: {report.maps}", "", report.preparation, ""]
    for result, sheet in zip(report.sets, sheets, strict=True):
        lines += [f"## {result.title}", ""]
        heads = [f"PurNet {backbone}, as published" for backbone in result.published]
        lines += _markdown_table(
            ["metric", result.name, *heads, "convention"],
            [
                [*row, report.conventions[metric.key]]
                for metric, row in zip(METRICS, _rows(result), strict=True)
            ],
        )
        lines += [f"{result.sharpness}.", ""]
        absent = _absent(result)
        if absent:
            lines += [f"Not scored: {len(absent)}", ""]
            lines += [*(f"- `{file}`: {reason}" for file, reason in absent), ""]
        lines += [f"![{result.name}: best, median and worst]({sheet})", ""]
    lines += ["## Precision and recall", "", "![Precision over recall](precision-recall.png)", ""]
    if any(result.published for result in report.sets):
        lines += [f"As published: {report.published_source}.", ""]
    return "\n".join(lines)


def arrowed(metric: Metric) -> str:
    """A metric's label with the direction in which it is better."""
    return f"{metric.label} {'↓' if metric.better == 'lower' else '↑'}"


def _rows(result: SetResult) -> list[list[str]]:
    """Per metric its label, our number and the published ones."""
    rows = []
    for metric in METRICS:
        published = (numbers.get(metric.key) for numbers in result.published.values())
        rows.append(
            [
                arrowed(metric),
                f"{result.metrics[metric.key]:.4f}",
                *("" if number is None else f"{number:.3f}" for number in published),
            ]
        )
    return rows


def _absent(result: SetResult) -> list[tuple[str, str]]:
    """What was not scored, and why."""
    return [(stem, "no prediction") for stem in result.missing] + [
        (out.file, out.reason) for out in result.left_out
    ]


def _table(result: SetResult) -> Table:
    table = Table(title=escape(result.title), title_justify="left")
    table.add_column("metric", no_wrap=True)
    for head in (result.name, *(f"PurNet {backbone}" for backbone in result.published)):
        table.add_column(escape(head), justify="right")
    for row in _rows(result):
        table.add_row(*map(escape, row))
    return table


def _print_list(title: str, lines: Sequence[str], console: Console) -> None:
    if not lines:
        return
    console.print(f"{title}: {len(lines)}", style="bold red", markup=False)
    for line in lines[:_MAX_NAMED]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if len(lines) > _MAX_NAMED:
        console.print(f"  and {len(lines) - _MAX_NAMED} more (--json names them all)")


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    aligned = [":--", *("--:" for _ in heads[1:-1]), ":--"]
    # A bar inside a cell would end it.
    cells = [heads, aligned, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]
