from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from training_runs import losses_of, make_trainer

from purnet.data.augment import Augmentation
from purnet.data.dataset import Sample
from purnet.training import trainer as trainer_module
from purnet.training.batches import Batches
from purnet.training.recipe import LossWeights, Recipe
from purnet.training.resume import RunState
from purnet.training.sources import TrainingData
from purnet.training.trainer import Trainer
from purnet.training.validation import Scores

pytestmark = pytest.mark.needs_torch


def test_a_stage_may_vary_its_samples_in_its_own_way(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[str, float] = {}
    for name, augmentation in {"plain": None, "mirrored": Augmentation(flip=1.0)}.items():
        stage = recipe.stages[0].model_copy(update={"iterations": 1, "augmentation": augmentation})
        (first[name],) = losses_of(stage, recipe, data, tmp_path / name, monkeypatch)
    assert first["plain"] != first["mirrored"]


def seen_by(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """The batches a trainer makes its steps with."""
    batches: list[Sample] = []
    step = Trainer._step

    def watched(self: Trainer, run: Any, batch: Sample) -> None:
        batches.append(batch)
        step(self, run, batch)

    monkeypatch.setattr(Trainer, "_step", watched)
    monkeypatch.setattr(trainer_module, "validate", lambda *_: Scores(mae=0.5, max_f=0.5))
    trainer.run()
    return batches


def test_every_batch_has_a_size_of_its_own_wherever_a_run_was_stopped(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recipe.stages[0].model_copy(
        update={"min_image_size": 64, "image_size": 128, "iterations": 8, "batch_size": 1}
    )
    small = recipe.model_copy(update={"stages": [stage]})
    batches = seen_by(make_trainer(small, data, tmp_path / "whole"), monkeypatch)
    sides = [batch.image.shape[-1] for batch in batches]
    assert set(sides) == {64, 96, 128}
    pieces: list[int] = []
    finished = False
    while not finished:
        trainer = make_trainer(small, data, tmp_path / "pieces", stop_after_s=4)
        pieces += [batch.image.shape[-1] for batch in seen_by(trainer, monkeypatch)]
        finished = RunState.load(tmp_path / "pieces" / "resume.pt").iteration == 8
    assert pieces == sides


def test_no_two_samples_of_a_stage_are_varied_alike_wherever_it_was_stopped(
    recipe: Recipe, data: TrainingData
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 24})
    long = recipe.model_copy(update={"stages": [stage], "epoch_samples": 3 * len(data.train)})
    batches = Batches(long, data, loader_processes=0, pin_memory=False)
    keys = list(batches._keys(0, 0, 32))
    drawn = [(key.epoch, key.position) for batch in keys for key in batch]
    assert len({(key.epoch, key.pair) for batch in keys for key in batch}) < len(drawn)
    assert len(set(drawn)) == len(drawn)
    for start in (1, 7, 13):
        assert list(batches._keys(0, start, 32)) == keys[start:]


def test_only_a_stage_with_the_structure_loss_loads_regions(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe.stages[0].model_copy(update={"weights": LossWeights(iou=1), "iterations": 1})
    with_structure = recipe.stages[1].model_copy(update={"iterations": 1})
    both = recipe.model_copy(update={"stages": [plain, with_structure]})
    first, second = seen_by(make_trainer(both, data, tmp_path / "run"), monkeypatch)
    assert first.regions.shape == (2, 0, 64, 64)
    assert second.regions.shape == (2, 1, 64, 64)


def test_no_process_that_loads_outlives_its_block(recipe: Recipe, data: TrainingData) -> None:
    batches = Batches(recipe, data, loader_processes=2, pin_memory=False)
    with batches.training(0, start=0, stride=32) as loader:
        next(iter(loader))
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    assert len(loader._iterator._workers) == 2  # kept until here, as an exception would keep it
