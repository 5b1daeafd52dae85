from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training_runs import FakeValidation, assert_same, losses_of, make_trainer

from purnet.data.dataset import Sample
from purnet.errors import TrainingError, WriteError
from purnet.network import checkpoint
from purnet.network.variants import build
from purnet.training import trainer as trainer_module
from purnet.training.losses import Criterion
from purnet.training.recipe import Optimizer, Recipe
from purnet.training.resume import RunState, Tensors
from purnet.training.sources import TrainingData
from purnet.training.trainer import Trainer, TrainerOptions

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def whole(recipe: Recipe, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert make_trainer(recipe, data, out).run()
    return out


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else; the curves of `whole`, made before, are drawn."""
    monkeypatch.setattr(trainer_module, "plot_curves", lambda *_: None)


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
    while not make_trainer(recipe, data, out, stop_after_s=3).run():
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
    assert make_trainer(recipe, data, tmp_path / "one").run(stages=[0])
    _, weights = checkpoint.read(tmp_path / "one" / "stage1.safetensors")
    assert make_trainer(recipe, data, tmp_path / "two").run(stages=[1], init=weights)
    assert_same(tmp_path / "two" / "stage2.safetensors", whole / "stage2.safetensors")


def test_loader_processes_change_nothing(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    out = tmp_path / "pieces"
    while not make_trainer(recipe, data, out, stop_after_s=5, loader_processes=2).run():
        pass
    assert_same(out / "stage2.safetensors", whole / "stage2.safetensors")
    assert (out / "run.jsonl").read_text() == (whole / "run.jsonl").read_text()


def test_a_finished_run_that_is_started_again_changes_nothing(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    assert make_trainer(recipe, data, again).run()
    for path in whole.glob("*.safetensors"):
        assert_same(path, again / path.name)


def test_resuming_with_another_recipe_or_other_data_is_refused(
    whole: Path, recipe: Recipe, data: TrainingData
) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        make_trainer(recipe.model_copy(update={"seed": 4}), data, whole).run()
    with pytest.raises(TrainingError, match="other data"):
        make_trainer(recipe, replace(data, train=data.train[1:]), whole).run()


def test_resuming_with_other_stages_or_initial_weights_is_refused(
    whole: Path, recipe: Recipe, data: TrainingData
) -> None:
    with pytest.raises(TrainingError, match="a run of stage 1, 2, not of stage 1; choose another"):
        make_trainer(recipe, data, whole).run(stages=[0])
    with pytest.raises(TrainingError, match="other initial weights; choose another --out"):
        make_trainer(recipe, data, whole).run(init_sha256="0" * 64)


def test_resuming_with_photos_that_were_replaced_is_refused(
    whole: Path, recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    moved = [
        replace(pair, mask=Path(shutil.copy(pair.mask, tmp_path / f"{pair.stem}.png")))
        for pair in data.train
    ]
    assert make_trainer(recipe, replace(data, train=moved), whole).run()
    with moved[0].mask.open("ab") as mask:
        mask.write(b"more")
    with pytest.raises(TrainingError, match="other data: names or sizes"):
        make_trainer(recipe, replace(data, train=moved), whole).run()


def test_weights_that_cannot_be_written_are_named(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    (tmp_path / "run" / "stage1-best.safetensors").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"stage1-best\.safetensors cannot be written: Is a"):
        make_trainer(recipe, data, tmp_path / "run").run(stages=[0])


def test_a_resume_file_is_written_when_its_time_has_come(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = RunState.save
    monkeypatch.setattr(
        RunState, "save", lambda self, path: (saved.append(self.iteration), save(self, path))
    )
    make_trainer(recipe, data, tmp_path / "run", save_every_s=1).run(stages=[0])
    assert saved == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_names_the_batch(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    network = build(recipe.variant, attention=False)
    weights = network.state_dict()
    weights["purification.branches.0.head.logits.bias"] = torch.tensor([float("nan")])
    with pytest.raises(TrainingError, match=r"iteration 0 .*; the batch: \d+, \d+$") as caught:
        make_trainer(recipe, data, tmp_path / "run").run(init=weights)
    named = re.findall(r"\d+", str(caught.value).rsplit("batch:", 1)[1])
    assert set(named) <= {pair.stem for pair in data.train}
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_weights_of_another_network_are_refused(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="do not fit"):
        make_trainer(recipe, data, tmp_path / "run").run(init={"foreign": torch.zeros(1)})
    wider = build(recipe.variant, attention=False).state_dict()
    name = "purification.branches.0.head.logits.bias"
    wider[name] = torch.zeros(7)
    with pytest.raises(TrainingError, match=f"do not fit tiny: {name}"):
        make_trainer(recipe, data, tmp_path / "run").run(init=wider)


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
    make_trainer(recipe, data, tmp_path / "run").run(stages=[0])
    info, _ = checkpoint.read(tmp_path / "run" / "stage1-best.safetensors")
    assert f"iteration {best}," in info.notes["trained"]


def test_the_mean_of_validated_weights_is_that_of_an_interrupted_run_too(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 8, "average_from": 4})
    recipe = recipe.model_copy(update={"stages": [stage]})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert make_trainer(recipe, data, whole).run()
    while not make_trainer(recipe, data, parts, stop_after_s=2.0).run():
        pass

    kept = sorted(whole.glob("stage1-?.safetensors"))
    assert [path.stem for path in kept] == ["stage1-6", "stage1-8"]
    means = [checkpoint.read(run / "stage1-mean.safetensors")[1] for run in (whole, parts)]
    weights = [checkpoint.read(path)[1] for path in kept]
    for name, found in means[0].items():
        assert torch.equal(found, means[1][name]), name
        if found.is_floating_point():
            torch.testing.assert_close(found, (weights[0][name] + weights[1][name]) / 2)


def test_averaged_weights_are_validated_at_the_size_of_prediction(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = FakeValidation(0.3, 0.2)
    monkeypatch.setattr(trainer_module, "validate", validation)
    make_trainer(recipe, data, tmp_path / "run").run(stages=[0])
    assert validation.sides == {(96, 96)}
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
    make_trainer(plain, data, tmp_path / "run").run(init=before)
    _, after = checkpoint.read(tmp_path / "run" / "stage1.safetensors")
    steps = [(after[name] - before[name]).flatten() for name, _ in network.named_parameters()]
    assert torch.cat(steps).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_training_lowers_the_loss(
    recipe: Recipe, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 15, "learning_rate": 3e-2})
    losses = losses_of(stage, recipe, data, tmp_path, monkeypatch)
    assert len(losses) == 15
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_frozen_statistics_of_the_backbone_stay_while_its_weights_learn(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    stage = recipe.stages[0].model_copy(update={"freeze_backbone_statistics": True})
    network = build(recipe.variant, attention=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    make_trainer(recipe.model_copy(update={"stages": [stage]}), data, tmp_path / "run").run(
        init=before
    )
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
        make_trainer(recipe.model_copy(update={"epoch_samples": 100}), data, tmp_path / "run").run()
    assert next(calls) == 3
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_a_network_trains_in_bfloat16_where_its_device_does(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    trainer = make_trainer(recipe, data, tmp_path / "run")
    assert not trainer._autocast
    trainer._autocast = True
    assert trainer.run()
    _, weights = checkpoint.read(tmp_path / "run" / "stage2.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
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


def test_cuda_graphs_are_refused_where_they_cannot_be(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    for device, wanted in (("cpu", "need a CUDA device"), ("cuda:0", "the structure loss")):
        options = TrainerOptions(
            out=tmp_path / "run", device=torch.device(device), cuda_graphs=True
        )
        with pytest.raises(TrainingError, match=wanted):
            Trainer(recipe, data, options)


def test_weights_say_what_the_logits_they_began_with_were_scaled_by(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    trainer = make_trainer(recipe, data, tmp_path / "run")
    assert trainer.run(stages=[0], logits_scale=2)
    for name in ("stage1.safetensors", "resume.pt"):
        info, _ = checkpoint.read(tmp_path / "run" / name)
        assert info.notes["scale_logits"] == "2", name


def test_float32_is_not_tf32(recipe: Recipe, data: TrainingData, tmp_path: Path) -> None:
    """On any device: what a GPU's convolutions would be allowed."""
    seen: set[bool] = set()
    options = TrainerOptions(out=tmp_path / "run", device=torch.device("cpu"))

    def listen(*_: object) -> None:
        seen.add(torch.backends.cudnn.allow_tf32)

    before = torch.backends.cudnn.allow_tf32
    assert Trainer(recipe, data, options, listener=listen).run(stages=[0])
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 == before
