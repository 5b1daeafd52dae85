"""A training run from its options: recipe, data, device and start, with progress bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from purnet.errors import TrainingError
from purnet.inference.torch_engine import resolve_device
from purnet.io import make_folder, sha256_of
from purnet.network.checkpoint import read
from purnet.training.initial import with_imagenet_backbone
from purnet.training.recipe import Recipe, load_recipe
from purnet.training.resume import Tensors
from purnet.training.sources import load_data
from purnet.training.trainer import Trainer, TrainerOptions


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `purnet train`, which describes them."""

    recipe: str
    data: Path
    out: Path
    cache_dir: Path
    device: str
    stage: int | None
    init: Path | None
    backbone_weights: Path | None
    processes: int
    stop_after_min: float | None


def run(options: RunOptions) -> bool:
    """Run or resume a training run; False when `stop_after_min` ended it early.

    Raises `ModelError` for a recipe, data, device or weights that cannot be used.
    """
    console = Console(stderr=True)
    recipe = load_recipe(options.recipe)
    stages = _chosen_stages(recipe, options)
    for folder in (options.out, options.cache_dir):
        if folder.resolve().is_relative_to(options.data.resolve()):
            raise TrainingError(f"{folder} lies in the data folder, which is never written to")
    for folder in (options.out, options.cache_dir):
        make_folder(folder)
    device = resolve_device(options.device)
    init, init_sha256 = _initial(recipe, options)
    with Progress(console=console) as progress:
        data = load_data(
            recipe,
            options.data,
            options.cache_dir,
            processes=options.processes + 1,
            progress=lambda paths, total: progress.track(paths, total, description="superpixels"),
        )
    for path, reason in data.skipped:
        console.print(f"skipped {path}: {reason}", markup=False)
    console.print(
        f"{recipe.variant}: {len(data.train)} pairs to train on, {len(data.validation)} to "
        f"validate, on {device}",
        markup=False,
    )
    with Progress(console=console) as progress:
        bars = {
            index: progress.add_task(f"stage {index + 1}", total=recipe.stages[index].iterations)
            for index in stages
        }

        def listen(stage: int, iteration: int, loss: float) -> None:
            text = f"stage {stage + 1}, loss {loss:.3f}"
            progress.update(bars[stage], completed=iteration, description=text)

        trainer = Trainer(
            recipe,
            data,
            TrainerOptions(
                out=options.out,
                device=device,
                loader_processes=options.processes,
                stop_after_s=None
                if options.stop_after_min is None
                else options.stop_after_min * 60,
            ),
            listener=listen,
        )
        finished = trainer.run(stages=stages, init=init, init_sha256=init_sha256)
    console.print(
        f"done: {options.out}" if finished else f"stopped; the same command goes on: {options.out}",
        markup=False,
    )
    return finished


def _initial(recipe: Recipe, options: RunOptions) -> tuple[Tensors, str]:
    """The weights the first stage starts from and the SHA-256 of their file, empty for none."""
    backbone = options.backbone_weights
    if options.init is None:
        torch.manual_seed(recipe.seed)
        init = with_imagenet_backbone(recipe.variant, backbone)
        return init, "" if backbone is None else sha256_of(backbone)
    if backbone is not None:
        raise TrainingError("--init holds a backbone already; leave --backbone-weights out")
    info, init = read(options.init)
    if info.variant != recipe.variant:
        raise TrainingError(
            f"{options.init} is of {info.variant}, but {options.recipe} trains {recipe.variant}"
        )
    return init, sha256_of(options.init)


def _chosen_stages(recipe: Recipe, options: RunOptions) -> Sequence[int]:
    everything = range(len(recipe.stages))
    if options.stage is None:
        return everything
    if options.stage > len(everything):
        raise TrainingError(
            f"there is no stage {options.stage}: {options.recipe} has {len(everything)}"
        )
    if options.stage > 1 and options.init is None:
        raise TrainingError(
            f"stage {options.stage} alone needs --init: the checkpoint of stage {options.stage - 1}"
        )
    return everything[options.stage - 1 : options.stage]
