"""The optimizer of a stage, how its learning rates fall, and the average of what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from purnet.network.purnet import PurNet
from purnet.training.recipe import Part, Recipe, Stage


class _Terms(NamedTuple):
    """What the tensors of one group have in common."""

    factor: float
    """Learning rate, relative to the stage's."""
    scheduled: bool
    """Whether the schedule lowers it."""
    weight_decay: float


def make_optimizer(network: PurNet, recipe: Recipe, stage: Stage) -> torch.optim.Optimizer:
    """An optimizer whose groups carry the `factor` their learning rate is multiplied with."""
    options = recipe.optimizer
    groups: dict[_Terms, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(_terms(name, recipe, stage), []).append(parameter)
    tables = [{"params": params, **terms._asdict()} for terms, params in groups.items()]
    if options.name == "sgd":
        return torch.optim.SGD(tables, lr=stage.learning_rate, momentum=options.momentum)
    on_cuda = next(network.parameters()).is_cuda
    # One kernel for all tensors: launching one for each takes longer than computing.
    return torch.optim.AdamW(tables, lr=stage.learning_rate, fused=on_cuda)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that may be of another device: how to compute stays as `make_optimizer` says."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, was in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:
            group["fused"] = was


def set_rates(optimizer: torch.optim.Optimizer, stage: Stage, iteration: int) -> None:
    """Give every group its learning rate at an iteration of the stage, from 0."""
    for group in optimizer.param_groups:
        left = stage.rate(iteration) if group["scheduled"] else 1.0
        group["lr"] = stage.learning_rate * group["factor"] * left


def _terms(name: str, recipe: Recipe, stage: Stage) -> _Terms:
    options = recipe.optimizer
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


class AveragedNetwork(AveragedModel):
    """Exponential moving average of a network's tensors, running statistics included.

    The decay rises to its full value: after t updates it is at most (1 + t) / (10 + t), so that
    what a stage starts from is soon forgotten, however short the stage. Counters are copied.
    `module` is the averaged network, in evaluation mode.
    """

    module: PurNet

    def __init__(self, network: PurNet, *, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay
        self.module.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards a network's tensors.

        The inherited method moves its count to the device in every call, and waits for that.
        """
        updates = int(self.n_averaged)
        decay = min(self.decay, (1 + updates) / (10 + updates))
        averages: list[Tensor] = []
        tensors: list[Tensor] = []
        for average, tensor in zip(_tensors(self.module), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                tensors.append(tensor)
            else:
                average.copy_(tensor)
        move: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(averages, tensors, updates)
        self.n_averaged += 1


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())
