"""The optimiser of a stage: which tensors share a learning rate, and how it falls."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from purnet.network.purnet import PurNet
from purnet.training.recipe import Part, Recipe, Stage


class _Terms(NamedTuple):
    """What the tensors of one group have in common."""

    factor: float
    """Learning rate, relative to the stage's."""
    scheduled: bool
    """Whether the schedule lowers it."""
    weight_decay: float


def make_optimiser(network: PurNet, recipe: Recipe, stage: Stage) -> torch.optim.Optimizer:
    """An optimiser whose groups carry the `factor` their learning rate is multiplied with."""
    options = recipe.optimiser
    groups: dict[_Terms, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(_terms(name, recipe, stage), []).append(parameter)
    tables = [{"params": params, **terms._asdict()} for terms, params in groups.items()]
    if options.name == "sgd":
        return torch.optim.SGD(tables, lr=stage.learning_rate, momentum=options.momentum)
    return torch.optim.AdamW(tables, lr=stage.learning_rate)


def set_rates(optimiser: torch.optim.Optimizer, stage: Stage, iteration: int) -> None:
    """Give every group its learning rate at an iteration of the stage, from 0."""
    for group in optimiser.param_groups:
        # A resume file may be older than the exception from the schedule.
        left = stage.rate(iteration) if group.get("scheduled", True) else 1.0
        group["lr"] = stage.learning_rate * group["factor"] * left


def _terms(name: str, recipe: Recipe, stage: Stage) -> _Terms:
    options = recipe.optimiser
    part = name.split(".")[0]
    bias = name.endswith(".bias")
    factor = stage.factors.get(cast("Part", part), 1.0)
    if part == "backbone":
        factor *= options.backbone_factor
    if bias:
        factor *= options.bias_factor
    return _Terms(
        factor=factor,
        scheduled=recipe.corrections.every_group_decays or part == "backbone",
        weight_decay=0.0 if bias and not options.decay_biases else options.weight_decay,
    )
