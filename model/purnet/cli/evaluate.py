"""`purnet evaluate`: what was asked, checked and carried out. Imports nothing heavy by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purnet.cli.errors import reported_errors

if TYPE_CHECKING:
    from rich.console import Console

    from purnet.evaluation.plots import Pictures
    from purnet.evaluation.report import Report
    from purnet.evaluation.scoring import ImageSet
    from purnet.inference.predictor import Predictor

INCOMPLETE = 1
"""Exit status when some images were left out."""

WORST = 12
"""Maps a contact sheet shows where `--worst` does not say how many."""


def evaluate(
    predictions: Annotated[
        Path | None, typer.Argument(help="Folder of saved maps, STEM.png each.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Argument(help="Folder of masks with the same stems, or a data set.")
    ] = None,
    *,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Let the model predict a data set and score that: a folder in a known layout, by "
            "its path or by its name in --root. May be given several times.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the data sets. Default: the current folder."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            min=0,
            max=100,
            help="Score only the pairs that a recipe of this `held_out_percent` does not train on.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to predict with. Default: those this package ships."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")
    ] = None,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Fit saved maps of another size to their truth (bilinear)."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that score beside the one that predicts. Default: one for each "
            "processor that may be used.",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write every number, curve and image score here.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="What --json wrote for other maps of the same images: print how the scores "
            "differ, image by image, with standard errors.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write report.md, report.json, a precision-recall plot and a contact sheet of "
            "the best, median and worst maps into this folder."
        ),
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Draw the maps of the largest MAE, beside photo and truth, as this PNG."),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(min=1, help="How many maps --contact-sheet shows. Default: 12."),
    ] = None,
) -> None:
    """Score saliency maps by the field's measures and by PurNet's own convention.

    Give either PREDICTIONS and GROUND_TRUTH, or --dataset. Every number is printed with its
    convention; for the data sets of the PurNet paper its numbers stand beside ours.

    Exits 0 when every image was scored, 1 when some were missing or broken (they are named and
    the rest is scored), and 2 when nothing could be scored or the report not be written.
    """
    from rich.console import Console

    of_model: dict[str, object] = {
        "--root": root,
        "--held-out": held_out,
        "--checkpoint": checkpoint,
        "--device": device,
    }
    _check_usage(predictions, ground_truth, dataset, of_model, resize=resize)
    if json is not None:
        _check_writable("--json", json, folder=False)
    if report is not None:
        _check_writable("--report", report, folder=True)
    if contact_sheet is not None:
        _check_writable("--contact-sheet", contact_sheet, folder=False)
        if len(dataset or []) > 1:
            raise typer.BadParameter("--contact-sheet shows one data set; score it alone.")
    elif worst is not None:
        raise typer.BadParameter("--worst goes with --contact-sheet.")
    with reported_errors(extra="torch,evaluate"):
        from purnet.cpus import available_cpus
        from purnet.evaluation.comparison import print_comparison, read_baseline
        from purnet.evaluation.scoring import saved_maps

        predictor: Predictor | None = None
        if predictions is not None and ground_truth is not None:
            maps, sets = str(predictions), [saved_maps(predictions, ground_truth, resize=resize)]
        else:
            sets = _data_sets(dataset or [], root, held_out)
            maps, predictor = _loaded(checkpoint, device or "auto")
        others = None if baseline is None else read_baseline(baseline, sets)
        if processes is None:
            processes = available_cpus()
        scored = _score(maps, sets, predictor, processes, Console(stderr=True))
        _write(scored, sets, predictor, json, report)
        if others is not None:
            print_comparison(scored, others, Console())
        if contact_sheet is not None:
            _draw_failures(scored, sets, predictor, contact_sheet, worst or WORST)
    if not all(result.complete for result in scored.sets):
        raise typer.Exit(INCOMPLETE)


def _check_usage(
    predictions: Path | None,
    ground_truth: Path | None,
    dataset: list[str] | None,
    of_model: Mapping[str, object],
    *,
    resize: bool,
) -> None:
    """`of_model` holds, by name, options that saved maps have no use for."""
    if (predictions is None) == (not dataset) or (predictions is None) != (ground_truth is None):
        raise typer.BadParameter("give either PREDICTIONS and GROUND_TRUTH, or --dataset.")
    if dataset and resize:
        raise typer.BadParameter("--resize is for saved maps; the model's have the right size.")
    if predictions is not None and any(value is not None for value in of_model.values()):
        raise typer.BadParameter(f"{', '.join(of_model)} go with --dataset.")


def _check_writable(option: str, path: Path, *, folder: bool) -> None:
    """Refuse now, as far as it can be known, what could not be written at the end."""
    try:
        place = next((part for part in (path, *path.parents) if part.exists()), Path())
        if place == path and not (path.is_dir() if folder else path.is_file()):
            is_now = "a folder" if path.is_dir() else "a file" if path.is_file() else "a device"
            expected = "a folder" if folder else "a file"
            raise typer.BadParameter(f"{option} {path} is {is_now}; name {expected}.")
        reason = None if place == path or place.is_dir() else f"{place} is not a folder"
        # A file is replaced, not written over: its folder takes the new one.
        places = [place, Path(os.path.realpath(place)).parent] if place.is_file() else [place]
        locked = [part for part in places if not os.access(part, os.W_OK)]
        if reason is None and locked:
            reason = f"{locked[0]} is read-only"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise typer.BadParameter(f"{option} {path} cannot be written: {reason}.")


def _data_sets(datasets: list[str], root: Path | None, held_out: float | None) -> list[ImageSet]:
    from purnet.errors import EvaluationError
    from purnet.evaluation.scoring import dataset_to_predict

    sets = [dataset_to_predict(one, root, held_out_percent=held_out) for one in datasets]
    if len({images.name for images in sets}) < len(sets):
        raise EvaluationError("Two of the data sets have the same name; score them one by one.")
    return sets


def _loaded(checkpoint: Path | None, device: str) -> tuple[str, Predictor]:
    """What the report says of the maps, and what predicts them."""
    from purnet.inference.factory import load

    predictor = load(checkpoint, device=device)
    engine = predictor.engine
    maps = f"{predictor.variant}, sha256 {predictor.sha256}, {engine.name} on {engine.device}"
    return maps, predictor


def _score(
    maps: str,
    sets: list[ImageSet],
    predictor: Predictor | None,
    processes: int,
    console: Console,
) -> Report:
    from rich.progress import Progress

    from purnet.evaluation.report import Report
    from purnet.evaluation.scoring import score

    results = []
    with Progress(console=console, transient=True) as progress:
        for images in sets:
            task = progress.add_task(images.name, total=len(images.cases))
            advance = partial(progress.advance, task)
            results.append(score(images, predictor, processes=processes, progress=advance))
    return Report(maps=maps, sets=results)


def _write(
    report: Report,
    sets: list[ImageSet],
    predictor: Predictor | None,
    json: Path | None,
    folder: Path | None,
) -> None:
    from rich.console import Console

    from purnet.evaluation.plots import write_report
    from purnet.evaluation.report import print_report, to_json
    from purnet.io import make_folder, write_text

    console = Console()
    print_report(report, console)
    if json is not None:
        make_folder(json.parent)
        write_text(json, to_json(report))
        console.print(f"Wrote {json}", markup=False, soft_wrap=True)
    if folder is not None:
        pictures = {images.name: _pictures(images, predictor) for images in sets}
        for path in write_report(report, folder, pictures):
            console.print(f"Wrote {path}", markup=False, soft_wrap=True)


def _draw_failures(
    report: Report, sets: list[ImageSet], predictor: Predictor | None, path: Path, count: int
) -> None:
    from purnet.evaluation.plots import contact_sheet, failures
    from purnet.io import make_folder

    make_folder(path.parent)
    contact_sheet(failures(report.sets[0].scored, count), _pictures(sets[0], predictor), path)


def _pictures(images: ImageSet, predictor: Predictor | None) -> Pictures:
    from PIL import Image

    from purnet.data.pairs import read_truth
    from purnet.evaluation.scoring import map_of, resize_to
    from purnet.imaging import open_image

    by_stem = {case.stem: case for case in images.cases}

    def pictures(stem: str) -> tuple[Image.Image | None, Image.Image, Image.Image]:
        case = by_stem[stem]
        photo = None
        if case.photo is not None:
            # The photo is only shown: one that is broken leaves its place empty.
            with suppress(OSError, ValueError, Image.DecompressionBombError):
                photo = open_image(case.photo)
        truth = read_truth(case.truth)
        saliency = resize_to(map_of(case, predictor), truth)
        return photo, Image.fromarray(truth), Image.fromarray(saliency)

    return pictures
