from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.ablation import ABLATIONS, RECIPE, load_sized, recipe_of, score, train
from PIL import Image

from purnet.training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.needs_torch


def test_every_ablation_is_a_recipe_of_its_own() -> None:
    base = load_recipe(RECIPE)
    recipes = [recipe_of(base, one, 1, 400, 128) for one in ABLATIONS.values()]
    assert len({recipe.digest for recipe in recipes}) == len(ABLATIONS)
    assert [recipe.needs_superpixels for recipe in recipes].count(True) == 1
    assert {recipe.stages[0].image_size for recipe in recipes} == {128}


def test_a_run_on_the_first_source_alone_keeps_the_others_for_scores_alone() -> None:
    base = load_recipe(RECIPE)
    alone = recipe_of(base, ABLATIONS["alone"], 1, 400, 128)
    assert [source.folder for source in alone.sources] == [one.folder for one in base.sources]
    assert [source.share for source in alone.sources] == [base.sources[0].share, 0, 0, 0]


def test_a_run_that_is_done_is_scored_and_not_trained_again(tmp_path: Path) -> None:
    for folder in ("image", "mask"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((64, 64), np.uint8)
        mask[10 + number : 40, 20:50] = 255
        Image.fromarray(mask).save(tmp_path / f"data/mask/{number}.png")
        Image.fromarray(mask).convert("RGB").save(tmp_path / f"data/image/{number}.jpg")
    base = load_recipe(RECIPE).model_dump()
    base |= {"sources": [{"folder": "."}], "held_out_percent": 50.0}
    recipe = recipe_of(Recipe.model_validate(base), ABLATIONS["both"], 1, 1, 64)
    out = tmp_path / "run"
    held_out = train(recipe, tmp_path / "data", tmp_path / "superpixels", out)
    mae, weighted_f, s_measure = score(load_sized(out / "stage1.safetensors", 64), held_out)
    assert min(mae, weighted_f, s_measure) >= 0
    log = (out / "run.jsonl").read_text()
    assert train(recipe, tmp_path / "data", tmp_path / "superpixels", out) == held_out
    assert (out / "run.jsonl").read_text() == log
