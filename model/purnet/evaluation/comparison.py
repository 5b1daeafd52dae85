"""Two evaluations of the same images, compared image by image: better, or by chance?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from purnet.errors import EvaluationError
from purnet.evaluation.metrics import METRICS
from purnet.evaluation.report import Report, SetResult, arrowed
from purnet.evaluation.scoring import ImageSet

_COMPARED = tuple(metric for metric in METRICS if metric.key in {"mae", "weighted_f", "s_measure"})
"""The metrics that are means over images, each image's value being in the report."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a score differs from a baseline's over the images that both have."""

    baseline: float
    """The baseline's mean over these images."""
    mean: float
    """Of the images' differences, ours less the baseline's."""
    standard_error: float
    """Of that mean; NaN for a single image."""


def read_baseline(path: Path, sets: Iterable[ImageSet]) -> dict[str, SetResult]:
    """The sets of a report that `--json` wrote, by name.

    Raises `EvaluationError` when the file is none, or shares no image with one of `sets`.
    """
    try:
        report = Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise EvaluationError(f"{path} is not a report that --json wrote.") from error
    results = {result.name: result for result in report.sets}
    for images in sets:
        if images.name not in results:
            names = ", ".join(results)
            raise EvaluationError(f"{path} has no scores of {images.name}, but of: {names}.")
        stems = {image.stem for image in results[images.name].scored}
        if not any(case.stem in stems for case in images.cases):
            raise EvaluationError(f"{path} has scores of other images of {images.name}.")
    return results


def compare(result: SetResult, baseline: SetResult) -> tuple[int, dict[str, Difference]]:
    """How many images both have, and the difference of each score by the key of its metric.

    Raises `EvaluationError` when they share none.
    """
    theirs = {image.stem: image for image in baseline.scored}
    both = [(image, theirs[image.stem]) for image in result.scored if image.stem in theirs]
    if not both:
        raise EvaluationError(f"No image of {result.name} was scored in both evaluations.")
    differences = {}
    for metric in _COMPARED:
        ours, before = np.array([[getattr(one, metric.key) for one in pair] for pair in both]).T
        change = ours - before
        error = float(change.std(ddof=1) / len(both) ** 0.5) if len(both) > 1 else float("nan")
        differences[metric.key] = Difference(float(before.mean()), float(change.mean()), error)
    return len(both), differences


def print_comparison(report: Report, baseline: dict[str, SetResult], console: Console) -> None:
    """A table per data set: the baseline's score, the difference, its standard error."""
    for result in report.sets:
        images, differences = compare(result, baseline[result.name])
        title = f"{result.name}, less the baseline's, on the {images} images of both"
        table = Table(title=escape(title), title_justify="left")
        table.add_column("metric", no_wrap=True)
        for head in ("baseline", "difference", "standard error"):
            table.add_column(head, justify="right")
        for metric in _COMPARED:
            one = differences[metric.key]
            error = "" if np.isnan(one.standard_error) else f"{one.standard_error:.4f}"
            table.add_row(arrowed(metric), f"{one.baseline:.4f}", f"{one.mean:+.4f}", error)
        console.print(table)
    console.print("A difference below two standard errors may be chance.", markup=False)
