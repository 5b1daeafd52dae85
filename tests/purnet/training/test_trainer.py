from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from purnet.data.augment import Augmentation
from purnet.data.dataset import Sample
from purnet.errors import TrainingError, WriteError
from purnet.network import checkpoint
from purnet.network.purnet import PurNet
from purnet.network.variants import build
from purnet.training import trainer as trainer_module
from purnet.training.losses import Criterion, Scores
from purnet.training.optimizer import AveragedNetwork, make_optimizer
from purnet.training.recipe import LossWeights, Optimizer, Recipe, Stage
from purnet.training.resume import RunState, Tensors
from purnet.training.sources import TrainingData
from purnet.training.trainer import Trainer, TrainerOptions

CPU = torch.device("cpu")


def make(recipe: Recipe, data: TrainingData, out: Path, **options: Any) -> Trainer:
    """A trainer whose clock ticks once a reading: time is counted in iterations."""
    ticks = count()
    return Trainer(
        recipe,
        data,
        TrainerOptions(out=out, device=CPU, **options),
        clock=lambda: float(next(ticks)),
    )


def assert_same(one: Path, other: Path) -> None:
    """Two checkpoints say and hold the same; the order of their metadata may differ."""
    (info, tensors), (other_info, other_tensors) = checkpoint.read(one), checkpoint.read(other)
    assert info == other_info
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


@pytest.fixture(scope="module")
def whole(recipe: Recipe, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert make(recipe, data, out).run()
    return out


def test_a_run_leaves_its_weights_log_and_curves(whole: Path, recipe: Recipe) -> None:
    for name in ("stage1", "stage1-best", "stage2", "stage2-best"):
        network = checkpoint.load(whole / f"{name}.safetensors")
        assert (network.promotion is not None) == name.startswith("stage2")
    lines = [json.loads(line) for line in (whole / "run.jsonl").read_text().splitlines()]
    checks = [(e["stage"], e["iteration"]) for e in lines if "mae" in e]
    assert checks == [(1, 3), (1, 4), (2, 3), (2, 4)]  # each epoch of 6 samples, each stage's end
    assert all(0 <= e["mae"] <= 1 and 0 <= e["max_f"] <= 1 for e in lines)
    with Image.open(whole / "curves.png") as curves:
        curves.load()


def test_an_interrupted_run_equals_a_whole_one_bit_for_bit(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    out = tmp_path / "pieces"
    pieces = 1
    while not make(recipe, data, out, stop_after_s=3).run():
        pieces += 1
        assert pieces < 20
    assert pieces >= 4
    for name in ("stage1", "stage2", "stage2-best"):
        assert_same(out / f"{name}.safetensors", whole / f"{name}.safetensors")
    assert (out / "run.jsonl").read_text() == (whole / "run.jsonl").read_text()
    mine, theirs = RunState.load(out / "resume.pt"), RunState.load(whole / "resume.pt")
    assert mine.iteration == theirs.iteration == 4
    for state in ("network", "averaged"):
        for name, tensor in getattr(mine, state).items():
            assert torch.equal(tensor, getattr(theirs, state)[name]), name
    for index, slots in mine.optimizer["state"].items():
        for name, value in slots.items():
            assert torch.equal(value, theirs.optimizer["state"][index][name])
    for a, b in zip(mine.rng, theirs.rng, strict=True):
        assert torch.equal(a, b)


def test_stages_run_one_by_one_equal_a_whole_run(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    assert make(recipe, data, tmp_path / "one").run(stages=[0])
    _, weights = checkpoint.read(tmp_path / "one" / "stage1.safetensors")
    assert make(recipe, data, tmp_path / "two").run(stages=[1], init=weights)
    assert_same(tmp_path / "two" / "stage2.safetensors", whole / "stage2.safetensors")


def test_a_finished_run_that_is_started_again_changes_nothing(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    assert make(recipe, data, again).run()
    for path in whole.glob("*.safetensors"):
        assert_same(path, again / path.name)


def test_resuming_with_another_recipe_or_other_data_is_refused(
    whole: Path, recipe: Recipe, data: TrainingData
) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        make(recipe.model_copy(update={"seed": 4}), data, whole).run()
    with pytest.raises(TrainingError, match="other data"):
        make(recipe, replace(data, train=data.train[1:]), whole).run()


def test_resuming_with_other_stages_or_initial_weights_is_refused(
    whole: Path, recipe: Recipe, data: TrainingData
) -> None:
    with pytest.raises(TrainingError, match="a run of stage 1, 2, not of stage 1; choose another"):
        make(recipe, data, whole).run(stages=[0])
    with pytest.raises(TrainingError, match="other initial weights; choose another --out"):
        make(recipe, data, whole).run(init_sha256="0" * 64)


def test_resuming_with_photos_that_were_replaced_is_refused(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    moved = [
        replace(pair, mask=Path(shutil.copy(pair.mask, tmp_path / f"{pair.stem}.png")))
        for pair in data.train
    ]
    assert make(recipe, replace(data, train=moved), whole).run()
    with moved[0].mask.open("ab") as mask:
        mask.write(b"more")
    with pytest.raises(TrainingError, match="other data: names or sizes"):
        make(recipe, replace(data, train=moved), whole).run()


def test_weights_that_cannot_be_written_are_named(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    (tmp_path / "run" / "stage1-best.safetensors").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"stage1-best\.safetensors cannot be written: Is a"):
        make(recipe, data, tmp_path / "run").run(stages=[0])


def test_a_resume_file_is_written_when_its_time_has_come(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = RunState.save
    monkeypatch.setattr(
        RunState, "save", lambda self, path: (saved.append(self.iteration), save(self, path))
    )
    make(recipe, data, tmp_path / "run", save_every_s=1).run(stages=[0])
    assert saved == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_names_the_batch(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    network = build(recipe.variant, attention=False)
    weights = network.state_dict()
    weights["purification.branches.0.head.logits.bias"] = torch.tensor([float("nan")])
    with pytest.raises(TrainingError, match=r"iteration 0 .*; the batch: \d+, \d+$") as caught:
        make(recipe, data, tmp_path / "run").run(init=weights)
    named = re.findall(r"\d+", str(caught.value).rsplit("batch:", 1)[1])
    assert set(named) <= {pair.stem for pair in data.train}
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_weights_of_another_network_are_refused(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="do not fit"):
        make(recipe, data, tmp_path / "run").run(init={"foreign": torch.zeros(1)})
    wider = build(recipe.variant, attention=False).state_dict()
    name = "purification.branches.0.head.logits.bias"
    wider[name] = torch.zeros(7)
    with pytest.raises(TrainingError, match=f"do not fit purnet-lite0: {name}"):
        make(recipe, data, tmp_path / "run").run(init=wider)


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


@pytest.mark.parametrize(("maes", "best"), [((0.2, 0.3), 3), ((0.3, 0.2), 4), ((0.2, 0.2), 3)])
def test_the_best_weights_are_those_of_the_lowest_mae(
    maes: tuple[float, ...],
    best: int,
    recipe: Recipe,
    data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_module, "validate", FakeValidation(*maes))
    make(recipe, data, tmp_path / "run").run(stages=[0])
    info, _ = checkpoint.read(tmp_path / "run" / "stage1-best.safetensors")
    assert f"iteration {best}," in info.notes["trained"]


def test_averaged_weights_are_validated_at_the_size_of_prediction(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = FakeValidation(0.3, 0.2)
    monkeypatch.setattr(trainer_module, "validate", validation)
    make(recipe, data, tmp_path / "run").run(stages=[0])
    assert validation.sides == {(320, 320)}
    _, exported = checkpoint.read(tmp_path / "run" / "stage1.safetensors")
    last = RunState.load(tmp_path / "run" / "resume.pt")
    name = "purification.branches.0.head.logits.weight"
    assert torch.equal(validation.weights[-1][name], exported[name])
    assert torch.equal(validation.weights[-1][name], last.averaged[name])
    assert not torch.equal(validation.weights[-1][name], last.network[name])


def test_gradients_are_clipped_to_the_recipes_norm(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "validate", FakeValidation(0.5))
    stage = recipe.stages[0].model_copy(update={"iterations": 1, "learning_rate": 1})
    plain = recipe.model_copy(
        update={
            "ema": 0,
            "stages": [stage],
            "optimizer": Optimizer(name="sgd", momentum=0, weight_decay=0, clip_norm=0.01),
        }
    )
    network = build(recipe.variant, attention=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    make(plain, data, tmp_path / "run").run(init=before)
    _, after = checkpoint.read(tmp_path / "run" / "stage1.safetensors")
    steps = [(after[name] - before[name]).flatten() for name, _ in network.named_parameters()]
    assert torch.cat(steps).norm().item() == pytest.approx(0.01, rel=1e-3)


def losses_of(
    stage: Stage, recipe: Recipe, data: TrainingData, out: Path, patch: pytest.MonkeyPatch
) -> list[float]:
    """The loss of every iteration of a run of one stage."""
    patch.setattr(trainer_module, "LOG_EVERY", 1)
    make(recipe.model_copy(update={"stages": [stage]}), data, out).run()
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_training_lowers_the_loss(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 15, "learning_rate": 3e-3})
    losses = losses_of(stage, recipe, data, tmp_path, monkeypatch)
    assert len(losses) == 15
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_learning_rates_follow_the_schedule_in_every_group(recipe: Recipe) -> None:
    slow = Optimizer(backbone_factor=0.1, bias_factor=2)
    network = build(recipe.variant, attention=False)
    optimizer = make_optimizer(
        network, recipe.model_copy(update={"optimizer": slow}), recipe.stages[0]
    )
    named = {id(p): name for name, p in network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = named.pop(id(parameter))
            expected = (0.1 if name.startswith("backbone.") else 1) * (
                2 if name.endswith(".bias") else 1
            )
            assert group["factor"] == pytest.approx(expected), name
    assert not named


def stage_with(**fields: object) -> Stage:
    table = {
        "attention": False,
        "iterations": 100,
        "batch_size": 1,
        "image_size": 64,
        "learning_rate": 1.0,
        "weights": {},
    }
    return Stage(**{**table, **fields})  # type: ignore[arg-type]


def test_schedules_have_their_known_values() -> None:
    poly = stage_with(schedule="poly", power=0.9)
    assert poly.rate(0) == 1
    assert poly.rate(50) == pytest.approx(0.5**0.9)
    cosine = stage_with(final=0.2, warmup=10)
    assert cosine.rate(0) == pytest.approx(0.1)
    assert cosine.rate(9) == 1
    assert cosine.rate(10) == 1
    assert cosine.rate(55) == pytest.approx(0.6)
    assert cosine.rate(100) == pytest.approx(0.2)


def test_a_stage_may_vary_its_samples_in_its_own_way(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[str, float] = {}
    for name, augmentation in {"plain": None, "mirrored": Augmentation(flip=1.0)}.items():
        stage = recipe.stages[0].model_copy(update={"iterations": 1, "augmentation": augmentation})
        (first[name],) = losses_of(stage, recipe, data, tmp_path / name, monkeypatch)
    assert first["plain"] != first["mirrored"]


def test_an_average_moves_by_its_decay_and_copies_counters() -> None:
    network = build("purnet-lite0", attention=False)
    averaged = AveragedNetwork(network, decay=0.9)
    averaged.n_averaged.fill_(1000)
    normalisation = network.backbone.stem[2]
    with torch.no_grad():
        normalisation.weight.fill_(2.0)
        normalisation.running_mean.fill_(1.0)
        normalisation.num_batches_tracked.fill_(7)
    averaged.update_parameters(network)
    mine = averaged.module.backbone.stem[2]
    assert mine.weight.tolist() == pytest.approx([1.1] * 32)
    assert mine.running_mean.tolist() == pytest.approx([0.1] * 32)
    assert mine.num_batches_tracked.item() == 7


def test_parts_that_a_stage_adds_are_known_by_name() -> None:
    before = set(build("purnet-lite0", attention=False).state_dict())
    added = set(build("purnet-lite0").state_dict()) - before
    assert all(
        name.startswith(trainer_module.ATTENTION_PARTS) or ".refine." in name for name in added
    )


def test_an_average_soon_forgets_what_a_stage_started_from() -> None:
    network = build("purnet-lite0", attention=False)
    averaged = AveragedNetwork(network, decay=0.998)
    weight = averaged.module.backbone.stem[1].weight
    before = weight.clone()
    with torch.no_grad():
        network.backbone.stem[1].weight.add_(1)
    for _ in range(50):
        averaged.update_parameters(network)
    assert (weight - before).min().item() > 0.999


# Measured by coverage, a loader process that is ended early exits with status 1.
@pytest.mark.filterwarnings("ignore:.*_MultiProcessingDataLoaderIter.__del__")
def test_loader_processes_change_nothing(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    out = tmp_path / "pieces"
    while not make(recipe, data, out, stop_after_s=5, loader_processes=2).run():
        pass
    assert_same(out / "stage2.safetensors", whole / "stage2.safetensors")
    assert (out / "run.jsonl").read_text() == (whole / "run.jsonl").read_text()


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
    batches = seen_by(make(small, data, tmp_path / "whole"), monkeypatch)
    sides = [batch.image.shape[-1] for batch in batches]
    assert set(sides) == {64, 96, 128}
    pieces: list[int] = []
    finished = False
    while not finished:
        trainer = make(small, data, tmp_path / "pieces", stop_after_s=4)
        pieces += [batch.image.shape[-1] for batch in seen_by(trainer, monkeypatch)]
        finished = RunState.load(tmp_path / "pieces" / "resume.pt").iteration == 8
    assert pieces == sides


def test_only_a_stage_with_the_structure_loss_loads_regions(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe.stages[0].model_copy(update={"weights": LossWeights(iou=1), "iterations": 1})
    with_structure = recipe.stages[1].model_copy(update={"iterations": 1})
    both = recipe.model_copy(update={"stages": [plain, with_structure]})
    first, second = seen_by(make(both, data, tmp_path / "run"), monkeypatch)
    assert first.regions.shape == (2, 0, 64, 64)
    assert second.regions.shape == (2, 1, 64, 64)


def test_frozen_statistics_of_the_backbone_stay_while_its_weights_learn(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    stage = recipe.stages[0].model_copy(update={"freeze_backbone_statistics": True})
    network = build(recipe.variant, attention=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    make(recipe.model_copy(update={"stages": [stage]}), data, tmp_path / "run").run(init=before)
    _, after = checkpoint.read(tmp_path / "run" / "stage1.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    statistics = {name for name in after if name.endswith(("running_mean", "running_var"))}
    assert {name.split(".")[0] for name in changed & statistics} == {"purification"}
    assert "backbone.stem.1.weight" in changed


def test_losses_are_read_where_they_are_logged_and_the_iteration_is_named_that_failed(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "LOG_EVERY", 3)
    total = Criterion.total
    calls = count()

    def failing(self: Criterion, losses: Tensors) -> torch.Tensor:
        return total(self, losses) * (float("inf") if next(calls) == 1 else 1.0)

    monkeypatch.setattr(Criterion, "total", failing)
    with pytest.raises(TrainingError, match="the loss is inf in stage 1 at iteration 1 "):
        make(recipe.model_copy(update={"epoch_samples": 100}), data, tmp_path / "run").run()
    assert next(calls) == 3
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_a_network_trains_in_bfloat16_where_its_device_does(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    trainer = make(recipe, data, tmp_path / "run")
    assert not trainer._autocast
    trainer._autocast = True
    assert trainer.run()
    _, weights = checkpoint.read(tmp_path / "run" / "stage2.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_waits_for_nothing_in_a_step(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def guarded(self: Trainer, run: Any, batch: Sample) -> None:
        torch.cuda.set_sync_debug_mode("error" if run.iteration else "default")
        try:
            step(self, run, batch)
            run.averaged.update_parameters(run.network)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", guarded)
    options = TrainerOptions(
        out=tmp_path / "run", device=torch.device("cuda:0"), loader_processes=2
    )
    assert Trainer(recipe, data, options).run()
    assert checkpoint.load(tmp_path / "run" / "stage2.safetensors").promotion is not None
