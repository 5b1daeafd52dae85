"""The paper's recipe: its numbers, its corrections, and sixteen photos through its commands."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50
from typer.testing import CliRunner

from purnet.cli.app import app
from purnet.data.augment import Augmentation, Regions
from purnet.data.superpixels import IGNORE
from purnet.errors import TrainingError
from purnet.network import checkpoint, variants
from purnet.network.purnet import PurNet, PurNetOutput
from purnet.training.losses import Criterion, structural_similarity_loss
from purnet.training.optimizer import make_optimizer, set_rates
from purnet.training.recipe import (
    Corrections,
    LossWeights,
    Recipe,
    bundled_recipes,
    load_recipe,
)

pytestmark = pytest.mark.needs_torch

RELEASED = Corrections(single_sigmoid=False, every_group_decays=False, fill_is_no_region=False)


@pytest.fixture(scope="module")
def paper() -> Recipe:
    return load_recipe("paper")


# --- numbers


def test_stages_are_the_papers(paper: Recipe) -> None:
    assert paper.variant == "purnet-resnet50"
    assert [(s.iterations, s.batch_size) for s in paper.stages] == [
        (50_000, 4),
        (250_000, 4),
        (200_000, 2),
    ]
    assert [s.attention for s in paper.stages] == [False, True, True]
    assert all(s.isolate for s in paper.stages[1:])
    assert all(
        (s.image_size, s.schedule, s.power, s.final, s.warmup) == (320, "poly", 0.9, 0, 0)
        for s in paper.stages
    )
    assert paper.augmentation == Augmentation(flip=0.5, rotate_deg=10)
    assert [s.weights.structure for s in paper.stages] == [1, 0, 1]
    assert paper.corrections == Corrections()


def _rates(recipe: Recipe, stage: int, iteration: int) -> dict[str, dict[str, float]]:
    """Learning rate and decay by part and kind, such as `promotion.bias`."""
    with torch.device("meta"):
        network = variants.build(recipe.variant, attention=recipe.stages[stage].attention)
    optimizer = make_optimizer(network, recipe, recipe.stages[stage])
    set_rates(optimizer, recipe.stages[stage], iteration)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {
        f"{name.split('.')[0]}.{name.rpartition('.')[2]}": {
            key: group_of[id(p)][key] for key in ("lr", "weight_decay", "momentum")
        }
        for name, p in network.named_parameters()
    }


def test_new_parts_learn_ten_times_faster_and_biases_twice(paper: Recipe) -> None:
    first, last = _rates(paper, 0, 0), _rates(paper, 2, 0)

    assert {name: terms["lr"] for name, terms in first.items()} == pytest.approx(
        {
            "backbone.weight": 1e-3,
            "backbone.bias": 2e-3,
            "purification.weight": 1e-2,
            "purification.bias": 2e-2,
        }
    )
    assert {name: terms["lr"] for name, terms in last.items()} == pytest.approx(
        {
            "backbone.weight": 1e-3,
            "backbone.bias": 2e-3,
            "purification.weight": 1e-3,
            "purification.bias": 2e-3,
            "promotion.weight": 1e-2,
            "promotion.bias": 2e-2,
            "rectification.weight": 1e-2,
            "rectification.bias": 2e-2,
        }
    )
    for name, terms in {**first, **last}.items():
        assert terms["momentum"] == 0.9
        assert terms["weight_decay"] == (0 if name.endswith("bias") else 5e-4)


# --- corrections


def test_every_correction_is_a_switch_in_the_recipe(paper: Recipe) -> None:
    text = bundled_recipes()["paper"].read_text()

    for switch in Corrections.model_fields:
        assert f"{switch} = true" in text


def test_every_learning_rate_falls_unless_as_released(paper: Recipe) -> None:
    half = 0.5**0.9
    corrected = _rates(paper, 0, 25_000)
    released = _rates(paper.model_copy(update={"corrections": RELEASED}), 0, 25_000)

    assert corrected["backbone.weight"]["lr"] == pytest.approx(1e-3 * half)
    assert corrected["purification.weight"]["lr"] == pytest.approx(1e-2 * half)
    assert released["backbone.weight"]["lr"] == pytest.approx(1e-3 * half)
    assert released["purification.weight"]["lr"] == pytest.approx(1e-2)
    assert released["purification.bias"]["lr"] == pytest.approx(2e-2)


def test_one_sigmoid_unless_as_released() -> None:
    logits = torch.tensor([[[[4.0, -4.0]]]])
    truth, regions = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0, 1]]]])
    weights = LossWeights(saliency=0, structure=1)

    def loss(*, single_sigmoid: bool) -> torch.Tensor:
        criterion = Criterion(weights=weights, levels=[1], single_sigmoid=single_sigmoid)
        return criterion(PurNetOutput(saliency=[logits]), truth, regions, 2)["structure"]

    once = logits.sigmoid()
    twice = once.sigmoid()
    assert loss(single_sigmoid=True) == structural_similarity_loss(once, truth, regions, 2)
    assert loss(single_sigmoid=False) == structural_similarity_loss(twice, truth, regions, 2)
    assert loss(single_sigmoid=True) < 0.01 < loss(single_sigmoid=False)


def test_what_a_rotation_fills_is_no_region_unless_as_released() -> None:
    turn = Augmentation(rotate_deg=10)
    regions = Regions(torch.full((1, 64, 64), 5, dtype=torch.int32))

    def labels(fill: int) -> set[int]:
        torch.manual_seed(1)
        return set(turn.geometry(64, region_fill=fill)(regions).unique().tolist())

    assert labels(IGNORE) == {5, IGNORE}
    assert labels(0) == {0, 5}


def test_an_unknown_part_or_correction_is_named(tmp_path: Path) -> None:
    text = bundled_recipes()["paper"].read_text()
    path = tmp_path / "recipe.toml"

    path.write_text(text.replace("single_sigmoid", "twofold_sigmoid"))
    with pytest.raises(TrainingError, match=r"corrections\.twofold_sigmoid"):
        load_recipe(path)
    path.write_text(text.replace("{ purification", "{ purgatory"))
    with pytest.raises(TrainingError, match=r"stages\.0\.factors\.purgatory"):
        load_recipe(path)


# --- which loss teaches what


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("saliency", {"backbone", "purification"}),
        ("structure", {"backbone", "purification"}),
        ("promotion", {"promotion"}),
        ("object", {"rectification"}),
        ("error", {"rectification"}),
    ],
)
def test_a_loss_reaches_only_its_own_parts(paper: Recipe, loss: str, parts: set[str]) -> None:
    torch.manual_seed(0)
    network: PurNet = variants.build("purnet-lite0")
    names = dict.fromkeys(LossWeights.model_fields, 0.0)
    criterion = Criterion(weights=LossWeights(**{**names, loss: 1.0}), levels=[1.0] * 4)
    regions = torch.arange(64 * 64).view(1, 1, 64, 64) // 512

    output = network(torch.rand(2, 3, 64, 64), isolate=paper.stages[2].isolate)
    criterion.total(
        criterion(output, torch.rand(2, 1, 64, 64).round(), regions.repeat(2, 1, 1, 1), 8)
    ).backward()

    reached = {
        name.split(".")[0]
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert reached == parts


# --- the documented commands


@pytest.fixture(scope="module")
def duts_tr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen crops of two photos in the layout of DUTS-TR, brightness for truth."""
    root: Path = tmp_path_factory.mktemp("DUTS-TR")
    images, masks = root / "DUTS-TR-Image", root / "DUTS-TR-Mask"
    images.mkdir()
    masks.mkdir()
    for index in range(16):
        photo = skimage.data.chelsea() if index % 2 else skimage.data.coffee()
        left = 20 * (index // 2)
        crop = photo[40:136, left : left + 128]
        bright = crop.mean(axis=2) > np.median(crop)
        Image.fromarray(crop).save(images / f"ILSVRC2012_test_{index:08}.jpg")
        Image.fromarray(bright).convert("L").save(masks / f"ILSVRC2012_test_{index:08}.png")
    return root


def _purnet(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "variant", ["purnet-lite0", pytest.param("purnet-resnet50", marks=pytest.mark.slow)]
)
def test_sixteen_photos_through_the_three_stages(
    variant: str, duts_tr: Path, tmp_path: Path
) -> None:
    text = bundled_recipes()["paper"].read_text()
    for setting, value in {
        "variant": f'"{variant}"',
        "held_out_percent": 25.0,
        "iterations": 2,
        "batch_size": 2,
        "image_size": 64,
    }.items():
        text, found = re.subn(rf"(?m)^{setting} = .*$", f"{setting} = {value}", text)
        assert found
    recipe = tmp_path / "small.toml"
    recipe.write_text(text)
    start: list[object] = []
    if variant == "purnet-resnet50":
        torch.save(resnet50(weights=None).state_dict(), tmp_path / "imagenet.pth")
        start = ["--backbone-weights", tmp_path / "imagenet.pth"]
    common = ["train", "--recipe", recipe, "--data", duts_tr, "--cache-dir", tmp_path / "cache"]
    out = [tmp_path / f"stage{number}" for number in (1, 2, 3)]

    _purnet(*common, "--out", out[0], "--stage", 1, *start)
    _purnet(*common, "--out", out[1], "--stage", 2, "--init", out[0] / "stage1.safetensors")
    _purnet(*common, "--out", out[2], "--stage", 3, "--init", out[1] / "stage2.safetensors")

    states = [
        checkpoint.read(folder / f"stage{number}.safetensors")[1]
        for number, folder in enumerate(out, 1)
    ]
    assert states[0].keys() < states[1].keys() == states[2].keys()
    for before, after in pairwise(states):
        # Stages go on from where the one before ended: two small steps do not lead far.
        name = (
            "backbone.stem.0.weight" if variant == "purnet-resnet50" else "backbone.stem.1.weight"
        )
        assert not torch.equal(before[name], after[name])
        assert (
            nn.functional.cosine_similarity(before[name].flatten(), after[name].flatten(), 0) > 0.9
        )
    assert checkpoint.load(out[2] / "stage3.safetensors").promotion is not None
