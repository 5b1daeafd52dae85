"""A recipe that would train nothing, or nonsense, is refused when it is read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from purnet.errors import TrainingError
from purnet.training.recipe import Stage, bundled_recipes, load_recipe

pytestmark = pytest.mark.needs_torch

TEXT = """
variant = "purnet-lite0"
seed = 1
epoch_samples = 0
level_weights = [1, 1, 1, 1]
sources = [{ folder = "." }]
optimizer = {}
augmentation = {}
superpixels = {}
corrections = {}

[[stages]]
attention = false
iterations = 1
batch_size = 1
image_size = 64
learning_rate = 1
schedule = "poly"
weights = {}
factors = {}
"""


def written(folder: Path, key: str, value: str) -> Path:
    """The recipe above with one value, in TOML, at a key such as `stages.0.power`."""
    *tables, name = key.split(".")
    recipe: dict[str, Any] = tomllib.loads(TEXT)
    table: Any = recipe
    for part in tables:
        table = table[int(part) if part.isdigit() else part]
    table[int(name) if name.isdigit() else name] = tomllib.loads(f"x = {value}")["x"]
    path = folder / "recipe.toml"
    path.write_text("\n".join(f"{name} = {_toml(entry)}" for name, entry in recipe.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("variant", '"purnet-lite9"'),
        ("seed", "-1"),
        ("seed", "9223372036854775808"),
        ("epoch_samples", "-5"),
        ("ema", "-1"),
        ("ema", "2"),
        ("held_out_percent", "-1"),
        ("held_out_percent", "101"),
        ("level_weights", "[1, 1]"),
        ("level_weights", "[0, 0, 0, 0]"),
        ("level_weights.1", "-1"),
        ("sources", "[]"),
        ("sources", '[{ folder = ".", share = 0 }]'),
        ("sources.0.share", "-1"),
        ("sources.0.share", "nan"),
        ("stages", "[]"),
        ("stages.0.attention", '"off"'),
        ("stages.0.attention", "0"),
        ("stages.0.isolate", '"no"'),
        ("stages.0.iterations", "-3"),
        ("stages.0.iterations", "0"),
        ("stages.0.batch_size", "0"),
        ("stages.0.image_size", "0"),
        ("stages.0.image_size", "-64"),
        ("stages.0.min_image_size", "0"),
        ("stages.0.min_image_size", "96"),
        ("stages.0.boundary", "-1"),
        ("stages.0.freeze_backbone_statistics", "1"),
        ("stages.0.no_such_setting", "1"),
        ("cuda_precision", '"float16"'),
        ("stages.0.learning_rate", "-0.1"),
        ("stages.0.learning_rate", "0"),
        ("stages.0.learning_rate", "nan"),
        ("stages.0.learning_rate", "inf"),
        ("stages.0.power", "-1"),
        ("stages.0.final", "-0.1"),
        ("stages.0.final", "1.1"),
        ("stages.0.warmup", "-1"),
        ("stages.0.weights", "{ saliency = 0 }"),
        ("stages.0.weights", "{ promotion = 1 }"),
        ("stages.0.weights", "{ object = 1 }"),
        ("stages.0.weights", "{ error = 1 }"),
        ("stages.0.weights.iou", "-1"),
        ("stages.0.weights.structure", "nan"),
        ("stages.0.factors.backbone", "-1"),
        ("stages.0.warmup", "1"),
        ("stages.0.average_from", "0"),
        ("stages.0.average_from", "9"),
        ("optimizer.weight_decay", "-1"),
        ("optimizer.momentum", "-0.1"),
        ("optimizer.momentum", "1.5"),
        ("optimizer.backbone_factor", "-1"),
        ("optimizer.bias_factor", "-1"),
        ("optimizer.clip_norm", "-1.0"),
        ("optimizer.clip_norm", "0"),
        ("optimizer.decay_biases", "1"),
        ("augmentation.min_crop", "-1"),
        ("augmentation.min_crop", "0"),
        ("augmentation.min_crop", "2"),
        ("augmentation.flip", "3"),
        ("augmentation.rotate_deg", "-1"),
        ("augmentation.brightness", "-1"),
        ("augmentation.contrast", "-1"),
        ("augmentation.saturation", "nan"),
        ("augmentation.hue", "3"),
        ("augmentation.hue", "-0.1"),
        ("augmentation.grey", "5"),
        ("augmentation.copy_paste", "40"),
        ("augmentation.copy_paste", "-1"),
        ("superpixels.count", "0"),
        ("superpixels.count", "65535"),
        ("superpixels.compactness", "0"),
        ("superpixels.max_side", "0"),
        ("corrections.single_sigmoid", '"off"'),
    ],
)
def test_a_value_out_of_range_is_named_with_its_file(key: str, value: str, tmp_path: Path) -> None:
    path = written(tmp_path, key, value)
    with pytest.raises(TrainingError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {key}")
    assert "\n" not in str(caught.value)


def test_squares_that_do_not_fit_the_variant_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "stages.0.image_size", "65")
    with pytest.raises(TrainingError, match=r"stages: image_size 65 of stage 1 .* multiple of 32"):
        load_recipe(path)
    path = written(tmp_path, "stages.0.min_image_size", "33")
    with pytest.raises(TrainingError, match=r"stages: min_image_size 33 of stage 1 .* of 32"):
        load_recipe(path)


def test_a_stage_that_would_drop_the_attention_before_it_is_named(tmp_path: Path) -> None:
    (plain,) = tomllib.loads(TEXT)["stages"]
    stages = [plain, plain | {"attention": True}, plain]
    path = written(tmp_path, "stages", _toml(stages))
    with pytest.raises(TrainingError, match="stages: stage 3 would drop the attention"):
        load_recipe(path)
    load_recipe(written(tmp_path, "stages", _toml(stages[:2])))


def test_what_only_the_built_network_knows_is_checked_when_it_is_built(tmp_path: Path) -> None:
    path = written(tmp_path, "variant", '"timm/test_resnet"')
    recipe = load_recipe(path)
    with pytest.raises(TrainingError, match="timm/test_resnet: 4 weights for a network of 5 lev"):
        recipe.check_network([2, 4, 8, 16, 32])
    with pytest.raises(TrainingError, match="image_size 64 of stage 1 is not a multiple of 128"):
        recipe.check_network([4, 8, 16, 128])
    recipe.check_network([4, 8, 16, 32])


def test_reading_a_recipe_builds_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a module was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    for name in bundled_recipes():
        load_recipe(name)


def test_a_recipe_is_identified_by_all_its_settings_however_they_are_written(
    tmp_path: Path,
) -> None:
    plain = load_recipe(written(tmp_path, "seed", "1"))
    assert load_recipe(written(tmp_path, "stages.0.power", "0.9")).digest == plain.digest
    assert load_recipe(written(tmp_path, "stages.0.learning_rate", "1.0")).digest == plain.digest
    assert load_recipe(written(tmp_path, "stages.0.power", "0.8")).digest != plain.digest
    assert load_recipe(written(tmp_path, "corrections.single_sigmoid", "false")).digest != (
        plain.digest
    )


def test_sizes_of_a_stage_are_multiples_of_the_stride(tmp_path: Path) -> None:
    path = written(tmp_path, "stages.0.min_image_size", "32")
    stage = load_recipe(path).stages[0].model_copy(update={"image_size": 128})
    assert stage.sizes(32) == [32, 64, 96, 128]
    assert stage.model_copy(update={"min_image_size": None}).sizes(32) == [128]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "0"),
        ("sources", '[{ folder = "a" }, { folder = "b", share = 0 }]'),
        ("variant", '"timm/no_such_model"'),
        ("stages.0.min_image_size", "64"),
        ("stages.0.power", "0"),
        ("stages.0.final", "1"),
        ("stages.0.factors", "{ backbone = 0 }"),
        ("stages.0.weights", "{ saliency = 0, iou = 1 }"),
        ("optimizer.clip_norm", "1"),
        ("optimizer.momentum", "0"),
        ("augmentation.min_crop", "0.01"),
        ("augmentation.hue", "0.5"),
        ("augmentation.copy_paste", "1"),
        ("level_weights", "[1, 0, 0, 0]"),
        ("level_weights", "[]"),
    ],
)
def test_a_value_at_the_end_of_its_range_is_taken(key: str, value: str, tmp_path: Path) -> None:
    load_recipe(written(tmp_path, key, value))


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_bundled_recipe_is_within_the_ranges(name: str) -> None:
    assert load_recipe(name).stages


def test_what_is_no_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=f"{tmp_path} cannot be read: Is a dir"):
        load_recipe(tmp_path)
    path = tmp_path / "weights.toml"
    path.write_bytes(b"\x80\x02\xff\xfe")
    with pytest.raises(TrainingError, match=r"weights\.toml is not TOML"):
        load_recipe(path)


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
