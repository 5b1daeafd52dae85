"""`purnet train`: a run from its options, with progress bars. Imports nothing heavy by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purnet.cli.errors import reported_errors

if TYPE_CHECKING:
    from purnet.training.recipe import Recipe


def train(
    data: Annotated[
        Path,
        typer.Option(help="Folder the recipe's sources lie in.", exists=True, file_okay=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on in it.")],
    recipe: Annotated[str, typer.Option(help="lite0, lite2, paper, or a file.")] = "lite0",
    cache_dir: Annotated[
        Path, typer.Option(help="Where superpixels are kept; never below --data.")
    ] = Path(".cache/superpixels"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    stage: Annotated[
        int | None, typer.Option(min=1, help="Train this stage alone, from --init.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from, such as an earlier stage's.", exists=True),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            help="ImageNet weights of a backbone other than an EfficientNet-Lite.", exists=True
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that load samples beside the training one. Default: none on a CPU, "
            "one for each other CPU core on a GPU.",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="Replay steps as CUDA graphs: for a GPU that waits for the CPU. Each size of a "
            "batch takes memory of its own.",
        ),
    ] = False,
    stop_after: Annotated[
        float | None, typer.Option(min=0, help="Stop cleanly after this many MINUTES.")
    ] = None,
) -> None:
    """Train PurNet by a recipe of stages; run the same command again to go on."""
    with reported_errors(extra="train"):
        from rich.console import Console
        from rich.progress import Progress

        from purnet.cpus import available_cpus
        from purnet.errors import TrainingError
        from purnet.inference.torch_engine import resolve_device
        from purnet.io import make_folder
        from purnet.training.recipe import load_recipe
        from purnet.training.sources import check_sources, initial_weights, load_data
        from purnet.training.trainer import Trainer, TrainerOptions

        console = Console(stderr=True)
        settings = load_recipe(recipe)
        stages = _chosen_stages(settings, stage, init)
        written = (out, cache_dir) if settings.needs_superpixels else (out,)
        for folder in written:
            if folder.resolve().is_relative_to(data.resolve()):
                raise TrainingError(f"{folder} lies in the data folder, which is never written to")
        place = resolve_device(device)
        if processes is None:
            # A GPU is faster than one process that decodes; a CPU is busy with training itself.
            processes = 0 if place.type == "cpu" else max(1, available_cpus() - 1)
        weights = initial_weights(
            settings, settings.stages[stages[0]], init=init, backbone=backbone_weights
        )
        check_sources(settings, data)
        for folder in written:
            make_folder(folder)
        with Progress(console=console) as progress:
            pairs = load_data(
                settings,
                data,
                cache_dir,
                processes=available_cpus(),
                progress=lambda paths, n: progress.track(paths, n, description="superpixels"),
            )
        for path, reason in pairs.skipped:
            console.print(f"skipped {path}: {reason}", markup=False)
        for path in pairs.empty:
            console.print(f"nothing is salient in {path}", markup=False)
        console.print(
            f"{settings.variant}: {len(pairs.train)} pairs to train on, {len(pairs.validation)} to "
            f"validate, on {place}",
            markup=False,
        )
        with Progress(console=console) as progress:
            bars = {
                index: progress.add_task(
                    f"stage {index + 1}", total=settings.stages[index].iterations
                )
                for index in stages
            }

            def listen(stage: int, iteration: int, loss: float | None) -> None:
                text = f"stage {stage + 1}" + ("" if loss is None else f", loss {loss:.3f}")
                progress.update(bars[stage], completed=iteration, description=text)

            trainer = Trainer(
                settings,
                pairs,
                TrainerOptions(
                    out=out,
                    device=place,
                    loader_processes=processes,
                    stop_after_s=None if stop_after is None else stop_after * 60,
                    cuda_graphs=cuda_graphs,
                ),
                listener=listen,
            )
            finished = trainer.run(
                stages=stages,
                init=weights.tensors,
                init_sha256=weights.sha256,
                logits_scale=weights.logits_scale,
            )
        console.print(
            f"done: {out}" if finished else f"stopped; the same command goes on: {out}",
            markup=False,
        )


def _chosen_stages(recipe: Recipe, stage: int | None, init: Path | None) -> range:
    from purnet.errors import TrainingError

    everything = range(len(recipe.stages))
    if stage is None:
        return everything
    if stage > len(everything):
        raise TrainingError(f"there is no stage {stage}: the recipe has {len(everything)}")
    if stage > 1 and init is None:
        raise TrainingError(
            f"stage {stage} alone needs --init: the checkpoint of stage {stage - 1}"
        )
    return everything[stage - 1 : stage]
