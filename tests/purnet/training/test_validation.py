"""Validation scores against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from py_sod_metrics import FmeasureHandler, FmeasureV2
from torch import Tensor, nn

from purnet.data.dataset import Sample
from purnet.data.pairs import TRUTH_ABOVE
from purnet.training.validation import Scores, f_curve, validate

pytestmark = pytest.mark.needs_torch

Map = Sequence[Sequence[float]]


class Oracle(nn.Module):
    """Answers with maps it was given, whatever it sees; only in evaluation mode."""

    def __init__(self, maps: Sequence[Map]) -> None:
        super().__init__()
        self._left = [torch.tensor(one, dtype=torch.float).unsqueeze(0) for one in maps]

    def predict(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, H, W) logits."""
        assert not self.training
        assert images.max() <= 1
        taken, self._left = self._left[: len(images)], self._left[len(images) :]
        return torch.stack(taken).logit(eps=1e-7)


def scores(maps: Sequence[Map], masks: Sequence[Map], *, batch_size: int) -> Scores:
    """Scores of maps in [0, 1] against masks in 0..255."""
    truth = torch.tensor(masks, dtype=torch.uint8).unsqueeze(1)
    batches = [
        Sample(
            image=torch.full((len(part), 3, 2, 2), 255, dtype=torch.uint8),
            mask=part,
            regions=torch.zeros_like(part, dtype=torch.long),
            pair=torch.zeros(len(part), dtype=torch.long),
        )
        for part in truth.split(batch_size)
    ]
    return validate(Oracle(maps).eval(), batches, torch.device("cpu"))  # type: ignore[arg-type]


HALF = [[1, 1], [0, 0]]
ONE = [[255, 0], [0, 0]]


def test_a_perfect_map_has_no_error() -> None:
    found = scores([HALF], [[[255, 255], [0, 0]]], batch_size=1)
    assert found.mae == pytest.approx(0, abs=1e-6)
    assert found.max_f == pytest.approx(1)


def test_one_pixel_too_many() -> None:
    found = scores([HALF], [ONE], batch_size=1)
    # A quarter of the pixels is wrong; precision 1/2, recall 1: 1.3 * 0.5 / (0.3 * 0.5 + 1).
    assert found.mae == pytest.approx(0.25, abs=1e-6)
    assert found.max_f == pytest.approx(0.65 / 1.15)


def test_the_best_threshold_is_common_to_all_images() -> None:
    wide, narrow = [[1, 0.5], [0, 0]], [[1, 0.5], [0, 0]]
    found = scores([wide, narrow], [[[255, 255], [0, 0]], ONE], batch_size=2)
    # Errors 0.5 / 4 each. Above 0.5: F of precision 1, recall 1/2, 1.3 * 0.5 / (0.3 + 0.5), and 1;
    # at 0.5: 1 and 0.65 / 1.15. Each image at its own best would give 1.
    assert found.mae == pytest.approx(0.125, abs=1e-6)
    assert found.max_f == pytest.approx((0.65 / 0.8 + 1) / 2)


def test_a_grey_mask_counts_by_its_level_in_the_error_and_by_the_cut_in_f() -> None:
    found = scores([[[1, 0], [0, 0]]], [[[255, 51], [102, 0]]], batch_size=1)
    assert found.mae == pytest.approx((0.2 + 0.4) / 4, abs=1e-6)
    assert found.max_f == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_image_counts_alike_however_they_are_batched(batch_size: int) -> None:
    found = scores([HALF] * 3, [ONE, ONE, [[255, 255], [0, 0]]], batch_size=batch_size)
    assert found.mae == pytest.approx(0.5 / 3, abs=1e-6)
    assert found.max_f == pytest.approx((2 * 0.65 / 1.15 + 1) / 3)


@pytest.mark.parametrize("seed", range(20))
def test_f_at_every_threshold_is_that_of_pysodmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(0, 256, 2))
    saliency = rng.integers(low, high + 1, (30, 40)).astype(np.uint8)
    mask = rng.integers(0, 256, (30, 40)).astype(np.uint8)
    if seed == 0:
        saliency[:] = 77
    if seed == 1:
        mask[:] = 0
    theirs = FmeasureV2({"f": FmeasureHandler(True, False, beta=0.3)})
    theirs.step(saliency, mask)
    expected = theirs.get_results()["f"]["dynamic"]
    assert f_curve(saliency, mask > TRUTH_ABOVE) == pytest.approx(expected, abs=1e-12)
