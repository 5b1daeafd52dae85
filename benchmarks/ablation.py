"""What each part of PurNet is worth: `python -m benchmarks.ablation DATA OUT`.

Trains the same network from ImageNet weights several times at a small size, each time with other
parts, and scores the held-out pairs: MAE, weighted F and S of those of the recipe's first source,
and MAE of the others, whose masks may be grey. A difference that is not larger than
that between seeds says nothing. Every run lies in a folder below OUT; the same command goes on
where it was stopped, and prints a Markdown table of the runs that are done.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks import robustness

import purnet
from purnet.data.pairs import Pair, find_pairs, is_held_out
from purnet.errors import ModelError
from purnet.network.checkpoint import read, save
from purnet.training.recipe import Recipe, load_recipe
from purnet.training.sources import initial_weights, load_data
from purnet.training.trainer import Trainer, TrainerOptions

RECIPE = Path(__file__).with_name("ablation.toml")
MAP_LOSSES = {"saliency": 1.0, "iou": 1.0}
PROMOTION = {"promotion": 0.5}
RECTIFICATION = {"object": 0.5, "error": 0.5}


@dataclass(frozen=True, slots=True)
class Ablation:
    """One way to leave parts out."""

    name: str
    attention: bool
    losses: Mapping[str, float]
    """Beside `MAP_LOSSES`, with their weights."""
    one_source: bool = False
    """Train on the recipe's first source alone; every source's held-out pairs are scored."""


ABLATIONS = {
    "pyramid": Ablation("no attention", False, {}),
    "no-attention-losses": Ablation("both attentions, without losses of their own", True, {}),
    "promotion": Ablation("both, promotion with its loss", True, PROMOTION),
    "rectification": Ablation("both, rectification with its losses", True, RECTIFICATION),
    "both": Ablation("both with their losses", True, PROMOTION | RECTIFICATION),
    "structure": Ablation(
        "the same and the structure loss", True, PROMOTION | RECTIFICATION | {"structure": 0.5}
    ),
    "s-measure": Ablation(
        "both with their losses, and S-measure",
        True,
        PROMOTION | RECTIFICATION | {"s_measure": 1.0},
    ),
    "alone": Ablation(
        "both with their losses, on the first source alone", True, PROMOTION | RECTIFICATION, True
    ),
}


def recipe_of(base: Recipe, ablation: Ablation, seed: int, iterations: int, size: int) -> Recipe:
    """One stage of so many iterations at this size, otherwise as the last stage of `base`."""
    values: dict[str, Any] = base.model_dump()
    stage = values["stages"][-1] | {
        "attention": ablation.attention,
        "iterations": iterations,
        "batch_size": 16,
        "image_size": size,
        "min_image_size": None,
        "learning_rate": base.stages[0].learning_rate,
        "warmup": iterations // 20,
        "average_from": None,
        "weights": {**MAP_LOSSES, **ablation.losses},
    }
    if ablation.one_source:
        first, *others = values["sources"]
        values["sources"] = [first, *(source | {"share": 0.0} for source in others)]
    # Averages of a short run, and one validation, at its end.
    changed = {"seed": seed, "ema": 0.99, "epoch_samples": 16 * iterations, "stages": [stage]}
    return Recipe.model_validate(values | changed)


def load_sized(checkpoint: Path, size: int) -> purnet.Predictor:
    """A checkpoint that predicts at the size it was trained at."""
    info, tensors = read(checkpoint)
    sized = checkpoint.with_name("scored.safetensors")
    save(tensors, sized, replace(info, input_size=size), half=False)
    return purnet.load(sized, device="cpu")


def score(predictor: purnet.Predictor, pairs: list[Pair]) -> tuple[float, float, float]:
    """Mean MAE, weighted F and S of the pairs' maps."""
    return robustness.mean_scores(robustness.score(predictor, pairs, lambda photo: photo))


def train(recipe: Recipe, data: Path, cache: Path, out: Path) -> list[Pair]:
    """Train to the end, unless that was done; gives the pairs that were held out."""
    pairs = load_data(recipe, data, cache, processes=2)
    weights = initial_weights(recipe, recipe.stages[0], init=None, backbone=None)
    options = TrainerOptions(out=out, device=torch.device("cpu"))
    Trainer(recipe, pairs, options).run(init=weights.tensors)
    return pairs.validation


def report(base: Recipe, options: argparse.Namespace) -> None:
    """Train, score and print a row for each seed and ablation. Raises `ModelError`."""
    held_out = partial(is_held_out, percent=base.held_out_percent)
    of_first = find_pairs(options.data / base.sources[0].folder, keep=held_out).pairs
    print(
        "| parts | seed | MAE | weighted F | S | MAE of other sources |\n|---|---|---|---|---|---|"
    )
    for seed in options.seeds:
        for key in options.only:
            ablation = ABLATIONS[key]
            recipe = recipe_of(base, ablation, seed, options.iterations, options.size)
            out = options.out / f"{key}-{seed}"
            scored = train(recipe, options.data, options.out / "superpixels", out)
            others = [pair for pair in scored if pair not in of_first]
            predictor = load_sized(out / "stage1.safetensors", options.size)
            numbers = " | ".join(f"{value:.4f}" for value in score(predictor, of_first))
            elsewhere = f"{score(predictor, others)[0]:.4f}" if others else ""
            print(f"| {ablation.name} | {seed} | {numbers} | {elsewhere} |", flush=True)


def main() -> None:
    """Train and score by options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder that the recipe's sources lie in")
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--recipe", default=RECIPE, help="what is not ablated [ablation.toml]")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    options = parser.parse_args()
    try:
        base = load_recipe(options.recipe)
        report(base, options)
    except ModelError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
