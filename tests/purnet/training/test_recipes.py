"""The recipes this package ships can be trained by."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from purnet.cli.app import app
from purnet.network import variants
from purnet.training.recipe import bundled_recipes, load_recipe

pytestmark = pytest.mark.needs_torch


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_suits_its_network(name: str) -> None:
    recipe = load_recipe(name)
    recipe.check_network(variants.build(recipe.variant, attention=False).backbone.strides)
    for stage in recipe.stages:
        assert stage.rate(stage.iterations - 1) < stage.rate(stage.warmup)


def test_help_names_every_bundled_recipe() -> None:
    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert {name for name in bundled_recipes() if f"{name}," not in text} == set()
