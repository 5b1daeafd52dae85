"""The shipped weights are as good as their model card says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import skimage.data

from purnet.data.pairs import find_pairs, read_truth
from purnet.evaluation.metrics import score_image, score_set
from purnet.inference.factory import load
from purnet.inference.predictor import Predictor
from purnet.network.checkpoint import DEFAULT_CHECKPOINT, load_with_info

MASKS = Path(__file__).parents[2] / "data" / "masks"
CARD = DEFAULT_CHECKPOINT.parent / "README.md"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load(device="cpu")


def test_the_shipped_file_is_small_and_says_what_it_is() -> None:
    assert DEFAULT_CHECKPOINT.stat().st_size <= 10e6
    network, info = load_with_info(DEFAULT_CHECKPOINT)
    assert (info.variant, info.input_size, info.attention) == ("purnet-lite0-gc", 320, True)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_links_of_the_model_card_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", CARD.read_text()):
        assert (CARD.parent / link).exists(), link


def test_the_shipped_weights_pass_their_self_check(predictor: Predictor) -> None:
    predictor.self_check()


@pytest.fixture(scope="module")
def overlaps(predictor: Predictor) -> dict[str, float]:
    """Intersection over union with the masks drawn by hand, at threshold 128."""
    return {name: overlap(predictor, name) for name in ("chelsea", "coffee", "rocket")}


def overlap(predictor: Predictor, name: str) -> float:
    found = predictor.predict(getattr(skimage.data, name)()) >= 128
    truth = read_truth(MASKS / f"{name}.png") >= 128
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
def test_masks_agree_with_those_drawn_by_hand(overlaps: dict[str, float], name: str) -> None:
    """A smoke test: nothing is chosen by these three photos."""
    assert overlaps[name] >= 0.6


def test_the_model_card_tells_these_overlaps(overlaps: dict[str, float]) -> None:
    told = dict(re.findall(r"`(\w+)`\s+(0\.\d{3})", CARD.read_text()))
    assert {name: float(told[name]) for name in overlaps} == pytest.approx(overlaps, abs=0.003)


def test_the_error_on_human_masks_of_photos_never_trained_on_is_low(
    predictor: Predictor, require: Any
) -> None:
    data = os.environ.get("PURNET_DATA")
    require(data, "PURNET_DATA names the data folder")
    pairs = find_pairs(Path(data or "") / "test" / "sod226").pairs
    mae = score_set(
        [score_image(predictor.predict(pair.image), read_truth(pair.mask)) for pair in pairs]
    ).metrics["mae"]
    assert mae <= 0.125
    told = re.search(r"\| these weights \| (\.\d{4})", CARD.read_text())
    assert told is not None
    assert mae == pytest.approx(float(told[1]), abs=0.0003)
