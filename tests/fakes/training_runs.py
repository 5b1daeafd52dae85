"""Runs of the trainer whose clock counts iterations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from purnet.data.dataset import Sample
from purnet.network import checkpoint
from purnet.network.purnet import PurNet
from purnet.training import trainer as trainer_module
from purnet.training.recipe import Recipe, Stage
from purnet.training.resume import Tensors
from purnet.training.sources import TrainingData
from purnet.training.trainer import Trainer, TrainerOptions
from purnet.training.validation import Scores


def make_trainer(recipe: Recipe, data: TrainingData, out: Path, **options: Any) -> Trainer:
    """A trainer whose clock ticks once a reading: time is counted in iterations."""
    ticks = count()
    return Trainer(
        recipe,
        data,
        TrainerOptions(out=out, device=torch.device("cpu"), **options),
        clock=lambda: float(next(ticks)),
    )


def assert_same(one: Path, other: Path) -> None:
    """Two checkpoints say and hold the same; the order of their metadata may differ."""
    (info, tensors), (other_info, other_tensors) = checkpoint.read(one), checkpoint.read(other)
    assert info == other_info
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


class FakeValidation:
    """Stands for `validate`: gives the scores it was made with and keeps what it was shown."""

    def __init__(self, *maes: float) -> None:
        self.weights: list[Tensors] = []
        self.sides: set[tuple[int, ...]] = set()
        self._maes = iter(maes)

    def __call__(self, network: PurNet, batches: Iterable[Sample], _device: torch.device) -> Scores:
        self.weights.append({n: tensor.clone() for n, tensor in network.state_dict().items()})
        self.sides |= {tuple(batch.image.shape[-2:]) for batch in batches}
        return Scores(mae=next(self._maes), max_f=0.5)


def losses_of(
    stage: Stage, recipe: Recipe, data: TrainingData, out: Path, patch: pytest.MonkeyPatch
) -> list[float]:
    """The loss of every iteration of a run of one stage."""
    patch.setattr(trainer_module, "LOG_EVERY", 1)
    alone = recipe.model_copy(update={"stages": [stage], "epoch_samples": 1000})
    make_trainer(alone, data, out).run()
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
