from __future__ import annotations

import pytest
import torch

from purnet.network.variants import build
from purnet.training.optimizer import AveragedNetwork, make_optimizer, set_rates
from purnet.training.recipe import Optimizer, Recipe

pytestmark = pytest.mark.needs_torch


@pytest.mark.parametrize("iteration", [0, 3])
def test_learning_rates_follow_the_schedule_in_every_group(recipe: Recipe, iteration: int) -> None:
    slow = Optimizer(backbone_factor=0.1, bias_factor=2)
    network = build(recipe.variant, attention=False)
    stage = recipe.stages[0].model_copy(update={"warmup": 2, "iterations": 5})
    optimizer = make_optimizer(network, recipe.model_copy(update={"optimizer": slow}), stage)
    set_rates(optimizer, stage, iteration)
    rate = stage.learning_rate * stage.rate(iteration)
    assert rate < stage.learning_rate
    named = {id(p): name for name, p in network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = named.pop(id(parameter))
            expected = (0.1 if name.startswith("backbone.") else 1) * (
                2 if name.endswith(".bias") else 1
            )
            assert group["lr"] == pytest.approx(rate * expected), name
    assert not named


def test_an_average_moves_by_its_decay_and_copies_counters(tiny: str) -> None:
    network = build(tiny, attention=False)
    averaged = AveragedNetwork(network, decay=0.9)
    averaged.n_averaged.fill_(1000)
    normalisation = network.backbone.stem[1]
    with torch.no_grad():
        normalisation.weight.fill_(2.0)
        normalisation.running_mean.fill_(1.0)
        normalisation.num_batches_tracked.fill_(7)
    averaged.update_parameters(network)
    mine = averaged.module.backbone.stem[1]
    assert mine.weight.tolist() == pytest.approx([1.1] * 8)
    assert mine.running_mean.tolist() == pytest.approx([0.1] * 8)
    assert mine.num_batches_tracked.item() == 7


def test_an_average_soon_forgets_what_a_stage_started_from(tiny: str) -> None:
    network = build(tiny, attention=False)
    averaged = AveragedNetwork(network, decay=0.998)
    weight = averaged.module.backbone.stem[0].weight
    before = weight.clone()
    with torch.no_grad():
        network.backbone.stem[0].weight.add_(1)
    for _ in range(50):
        averaged.update_parameters(network)
    assert (weight - before).min().item() > 0.999
