"""What a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from training_runs import make_trainer

from purnet.errors import CheckpointError, ModelError, TrainingError
from purnet.io import sha256_of
from purnet.network import checkpoint, variants
from purnet.network.backbones import (
    EfficientNetLite,
    EfficientNetLite0,
    EfficientNetLite2,
    load_imagenet_lite,
)
from purnet.network.checkpoint import CheckpointInfo
from purnet.training.recipe import Recipe, Source
from purnet.training.sources import (
    TrainingData,
    initial_weights,
    load_data,
    with_imagenet_backbone,
)

pytestmark = pytest.mark.needs_torch


@pytest.mark.parametrize(
    ("variant", "of"), [("purnet-lite0", EfficientNetLite0), ("purnet-lite2", EfficientNetLite2)]
)
def test_a_backbone_of_a_package_knows_imagenet(variant: str, of: type[EfficientNetLite]) -> None:
    backbone = of()
    load_imagenet_lite(backbone)

    found = with_imagenet_backbone(variant)

    for name, tensor in backbone.state_dict().items():
        assert torch.equal(found[f"backbone.{name}"], tensor)
    variants.build(variant, attention=False).load_state_dict(found)


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_another_backbone_takes_its_classifiers_weights(
    tmp_path: Path, write: Callable[[Any, Path], None]
) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", pretrained=False)
    write(whole.state_dict(), tmp_path / "imagenet")

    found = with_imagenet_backbone("timm/test_resnet", tmp_path / "imagenet")

    assert torch.equal(found["backbone.net.layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)


def test_the_default_backbone_takes_no_other_weights(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="leave --backbone-weights out"):
        with_imagenet_backbone("purnet-lite0", tmp_path / "imagenet.pth")


def test_a_source_without_a_share_gives_held_out_pairs_alone(
    recipe: Recipe, tmp_path: Path
) -> None:
    for source in ("one", "other"):
        for folder in ("image", "mask"):
            (tmp_path / source / folder).mkdir(parents=True)
        for number in range(20):
            name = f"{source}{number}"
            Image.new("RGB", (4, 4)).save(tmp_path / source / "image" / f"{name}.jpg")
            Image.new("L", (4, 4), 255).save(tmp_path / source / "mask" / f"{name}.png")
    sources = [Source(folder="one"), Source(folder="other", share=0)]
    data = load_data(
        recipe.model_copy(update={"sources": sources, "held_out_percent": 50.0}), tmp_path, tmp_path
    )
    assert data.sizes == [len(data.train)]
    assert {pair.stem.rstrip("0123456789") for pair in data.train} == {"one"}
    assert {pair.stem.rstrip("0123456789") for pair in data.validation} == {"one", "other"}


def test_without_weights_the_option_is_named() -> None:
    with pytest.raises(TrainingError, match="needs --backbone-weights"):
        with_imagenet_backbone("timm/test_resnet")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ModelError, match="not weights of this backbone's classifier"):
        with_imagenet_backbone("timm/test_resnet", path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match="not a whole PyTorch"):
        with_imagenet_backbone("timm/test_resnet", path)


def weights_of(variant: str, folder: Path, *, attention: bool = True) -> Path:
    network = variants.build(variant, attention=attention)
    info = CheckpointInfo(variant, variants.get(variant).input_size, attention)
    checkpoint.save(network.state_dict(), folder / "some.safetensors", info, half=False)
    return folder / "some.safetensors"


@pytest.mark.parametrize("attention", [False, True])
def test_a_variant_starts_from_weights_of_one_that_lacks_its_optional_parts(
    recipe: Recipe, tmp_path: Path, *, attention: bool
) -> None:
    larger = recipe.model_copy(update={"variant": "purnet-lite0-s2"})
    path = weights_of("purnet-lite0", tmp_path, attention=attention)

    found, sha256, _ = initial_weights(larger, larger.stages[1], init=path, backbone=None)

    assert sha256 == sha256_of(path)
    variants.build("purnet-lite0-s2").load_state_dict(found, strict=False)


@pytest.mark.parametrize("variant", ["purnet-lite0", "purnet-lite0-s2"])
def test_a_stage_without_attentions_starts_from_the_rest_of_a_whole_network(
    recipe: Recipe, data: TrainingData, tmp_path: Path, variant: str
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 1})
    trained = recipe.model_copy(update={"variant": variant, "stages": [stage]})
    path = weights_of("purnet-lite0", tmp_path)

    found = initial_weights(trained, stage, init=path, backbone=None)

    whole = variants.build("purnet-lite0", attention=False).state_dict()
    assert found.tensors.keys() == whole.keys()
    trainer = make_trainer(trained, data, tmp_path / "run")
    trainer._network(stage, found.tensors)


@pytest.mark.parametrize(
    ("of", "trained", "name"),
    [
        ("purnet-lite0-s2", "purnet-lite0", r"purification\.edges\."),
        ("purnet-resnet50", "purnet-lite0", r"backbone\."),
    ],
)
def test_weights_of_a_variant_that_does_not_fit_name_both(
    recipe: Recipe, tmp_path: Path, of: str, trained: str, name: str
) -> None:
    other = recipe.model_copy(update={"variant": trained})
    path = weights_of(of, tmp_path)
    with pytest.raises(TrainingError, match=f"is of {of}, but the recipe trains {trained}.*{name}"):
        initial_weights(other, other.stages[1], init=path, backbone=None)
