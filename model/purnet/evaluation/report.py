"""The report of an evaluation: on the terminal, as Markdown, and as a folder of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from purnet.evaluation.metrics import METRICS
from purnet.evaluation.plots import Pictures, contact_sheet, precision_recall_plot
from purnet.evaluation.results import Report, SetResult

_NAMED_AT_MOST = 10
"""Missing or broken files listed on the terminal; the JSON file has them all."""


def print_report(report: Report, console: Console) -> None:
    """A table per data set, every number with its convention, and what was not scored."""
    console.print(f"Maps: {report.maps}", markup=False)
    console.print(report.preparation, markup=False)
    for result in report.sets:
        console.print(_table(result))
        _print_absent(result, console)
    if any(result.published for result in report.sets):
        console.print(f"As published: {report.published_source}.", markup=False)


def write_report(report: Report, folder: Path, pictures: Mapping[str, Pictures]) -> list[Path]:
    """Write report.md, report.json, precision-recall.png and a contact sheet per set.

    `pictures` answers, by a set's name, with the pictures of one of its stems. The folder is made
    when it is missing. Returns what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "precision-recall.png"
    precision_recall_plot(report.sets, plot)
    sheets = [folder / _sheet_name(result) for result in report.sets]
    for result, sheet in zip(report.sets, sheets, strict=True):
        contact_sheet(result.scored, pictures[result.name], sheet)
    markdown, json = folder / "report.md", folder / "report.json"
    markdown.write_text(to_markdown(report), encoding="utf-8")
    write_json(report, json)
    return [markdown, json, plot, *sheets]


def write_json(report: Report, path: Path) -> None:
    """The whole report, curves and every image included; `Report.model_validate_json` reads it."""
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def to_markdown(report: Report) -> str:
    """The report as Markdown; its pictures are the ones `write_report` puts beside it."""
    lines = ["# Evaluation", "", f"Maps: {report.maps}", "", report.preparation, ""]
    for result in report.sets:
        lines += [f"## {result.title}", ""]
        lines += _markdown_table(_heads(result), _rows(result))
        lines += _markdown_absent(result)
        lines += [f"![{result.name}: best, median and worst]({_sheet_name(result)})", ""]
    lines += ["## Precision and recall", "", "![Precision over recall](precision-recall.png)", ""]
    if any(result.published for result in report.sets):
        lines += [f"As published: {report.published_source}.", ""]
    return "\n".join(lines)


def _heads(result: SetResult) -> list[str]:
    published = [f"PurNet {backbone}, as published" for backbone in result.published]
    return ["metric", result.name, *published, "convention"]


def _rows(result: SetResult) -> list[list[str]]:
    rows = []
    for metric in METRICS:
        published = (numbers.get(metric.key) for numbers in result.published.values())
        rows.append(
            [
                f"{metric.label} {'↓' if metric.better == 'lower' else '↑'}",
                f"{result.metrics[metric.key]:.4f}",
                *("" if number is None else f"{number:.3f}" for number in published),
                metric.convention,
            ]
        )
    return rows


def _table(result: SetResult) -> Table:
    table = Table(title=escape(result.title), title_justify="left")
    first, *numbers, last = _heads(result)
    table.add_column(first, no_wrap=True)
    for head in numbers:
        table.add_column(escape(head), justify="right")
    table.add_column(last)
    for row in _rows(result):
        table.add_row(*map(escape, row))
    return table


def _print_absent(result: SetResult, console: Console) -> None:
    absent = [f"{stem}: no prediction" for stem in result.missing]
    absent += [f"{out.file}: {out.reason}" for out in result.left_out]
    if not absent:
        return
    console.print(f"Not scored in {result.name}: {len(absent)}", style="bold red", markup=False)
    for line in absent[:_NAMED_AT_MOST]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if len(absent) > _NAMED_AT_MOST:
        console.print(f"  and {len(absent) - _NAMED_AT_MOST} more (--json names them all)")


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    aligned = [":--", *("--:" for _ in heads[1:-1]), ":--"]
    # A bar inside a cell would end it.
    cells = [heads, aligned, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


def _markdown_absent(result: SetResult) -> list[str]:
    absent = [f"- `{stem}`: no prediction" for stem in result.missing]
    absent += [f"- `{out.file}`: {out.reason}" for out in result.left_out]
    return [f"Not scored: {len(absent)}", "", *absent, ""] if absent else []


def _sheet_name(result: SetResult) -> str:
    return f"{result.name}-contact-sheet.png"
