"""Every number on maps small enough to work out by hand."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import py_sod_metrics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from purnet.evaluation.metrics import (
    METRICS,
    f_measure,
    purnet_precision_recall,
    score_image,
    score_set,
)


def grey(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def square(side: int = 40, edge: int = 16) -> np.ndarray:
    """A white square of `edge` pixels in the middle of a black one of `side`."""
    truth = np.zeros((side, side), np.uint8)
    start = (side - edge) // 2
    truth[start : start + edge, start : start + edge] = 255
    return truth


def scores(*pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    return score_set([score_image(saliency, truth) for saliency, truth in pairs]).metrics


class TestPurNetConvention:
    def test_the_threshold_is_twice_the_mean_rounded_down(self):
        # The mean is 339 / 8, so twice the mean is 84.75: 84 is taken because it is rounded down.
        saliency = grey([255, 84, 0, 0], [0, 0, 0, 0])
        truth = grey([1, 0, 0, 0], [0, 0, 0, 1]).astype(bool)
        assert purnet_precision_recall(saliency, truth) == (1 / 2, 1 / 2)

    def test_the_map_is_scaled_before_the_threshold_is_taken(self):
        # 10..60 becomes 0..255; twice the mean of (0, 51, 102, 255) is 204.
        saliency = grey([10, 20, 30, 60])
        truth = grey([0, 0, 1, 1]).astype(bool)
        assert purnet_precision_recall(saliency, truth) == (1, 1 / 2)

    def test_a_mean_on_a_whole_threshold_takes_the_pixels_at_it(self):
        # The mean is 340 / 8, so twice the mean is 85 exactly.
        truth = grey([0, 0, 0, 1, 1, 0, 0, 0]).astype(bool)
        assert purnet_precision_recall(grey([0, 0, 0, 85, 255, 0, 0, 0]), truth) == (1, 1)

    def test_the_threshold_is_at_most_255(self):
        saliency = grey([0, 254, 255, 255])
        truth = grey([0, 1, 1, 1]).astype(bool)
        assert purnet_precision_recall(saliency, truth) == (1, 2 / 3)

    def test_a_nearly_empty_map_takes_the_whole_image(self):
        saliency = np.zeros((40, 40), np.uint8)
        saliency[0, 0] = 255
        truth = square() > 128
        assert purnet_precision_recall(saliency, truth) == (256 / 1600, 1)

    @pytest.mark.parametrize("level", [0, 100, 255])
    def test_a_constant_map_takes_nothing(self, level):
        saliency = np.full((40, 40), level, np.uint8)
        assert purnet_precision_recall(saliency, square() > 128) == (0, 0)

    def test_an_empty_truth_counts_as_a_miss(self):
        assert purnet_precision_recall(square(), np.zeros((40, 40), bool)) == (0, 0)

    def test_f_is_taken_once_of_the_mean_precision_and_recall(self):
        half = grey([255, 84, 0, 0], [0, 0, 0, 0])  # precision 1/2, recall 1/2
        exact = grey([255, 0, 0, 0], [0, 0, 0, 0])  # precision 1, recall 1/2
        truth = grey([255, 0, 0, 0], [0, 0, 0, 255])
        found = scores((half, truth), (exact, truth))
        assert found["purnet_precision"] == pytest.approx(0.75)
        assert found["purnet_recall"] == pytest.approx(0.5)
        assert found["purnet_f"] == pytest.approx(1.3 * 0.75 * 0.5 / (0.3 * 0.75 + 0.5))

    def test_f_of_nothing_right_is_zero(self):
        assert f_measure(0.0, 0.0) == 0.0

    @settings(deadline=None)
    @given(
        arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=6)),
        st.randoms(use_true_random=False),
    )
    def test_it_equals_the_formula_in_exact_fractions(self, saliency, random):
        truth = np.array([random.random() < 0.5 for _ in range(saliency.size)])
        truth = truth.reshape(saliency.shape)
        low, high = int(saliency.min()), int(saliency.max())
        if low == high:
            expected = (Fraction(0), Fraction(0))
        else:
            scaled = [Fraction(255 * (int(v) - low), high - low) for v in saliency.flat]
            threshold = floor(min(2 * sum(scaled) / len(scaled), Fraction(255)))
            taken = [value >= threshold for value in scaled]
            hits = sum(t and s for t, s in zip(taken, truth.flat, strict=True))
            expected = (Fraction(hits, sum(taken)), Fraction(hits, max(int(truth.sum()), 1)))
        assert purnet_precision_recall(saliency, truth) == (float(expected[0]), float(expected[1]))


class TestPySODMetrics:
    def test_a_perfect_map(self):
        found = scores((square(), square()))
        area = 256 / 1600
        everything_taken = 1.3 * area / (0.3 * area + 1)
        assert found["mae"] == 0
        for key in ("weighted_f", "purnet_f", "max_f", "adaptive_f", "s_measure"):
            assert found[key] == pytest.approx(1), key
        assert found["mean_f"] == pytest.approx((255 + everything_taken) / 256)
        # E divides by one pixel less than there are.
        assert found["max_e"] == pytest.approx(1600 / 1599)
        assert found["adaptive_e"] == pytest.approx(1600 / 1599)

    def test_an_inverted_map(self):
        found = scores((255 - square(), square()))
        area = 256 / 1600
        assert found["mae"] == 1
        assert found["max_f"] == pytest.approx(1.3 * area / (0.3 * area + 1))
        for key in ("weighted_f", "purnet_f", "adaptive_f", "adaptive_e"):
            assert found[key] == pytest.approx(0, abs=1e-9), key

    def test_mae_by_hand(self):
        found = scores((grey([0, 255], [51, 204]), grey([0, 255], [255, 0])))
        assert found["mae"] == pytest.approx((0 + 0 + 0.8 + 0.8) / 4)

    def test_adaptive_f_by_hand(self):
        # The threshold 84.75 is not rounded here: precision 1, recall 1/2.
        saliency = grey([255, 84, 0, 0], [0, 0, 0, 0])
        truth = grey([255, 0, 0, 0], [0, 0, 0, 255])
        assert scores((saliency, truth))["adaptive_f"] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))

    def test_max_f_is_the_best_of_the_mean_curve(self):
        truth = grey([0, 0, 255, 255])
        found = scores((grey([0, 100, 200, 255]), truth), (grey([0, 0, 0, 255]), truth))
        # From 101 to 199 the first map is right and the second has precision 1, recall 1/2.
        assert found["max_f"] == pytest.approx((1 + 1.3 * 0.5 / (0.3 + 0.5)) / 2)

    def test_s_of_an_empty_truth_is_what_the_map_leaves_dark(self):
        assert scores((grey([0, 255], [51, 102]), grey([0, 0], [0, 0])))["s_measure"] == (
            pytest.approx(1 - 0.4)
        )

    def test_s_of_a_full_truth_is_the_mean_of_the_map(self):
        assert scores((grey([0, 255], [51, 102]), grey([255] * 2, [255] * 2)))["s_measure"] == (
            pytest.approx(0.4)
        )

    @pytest.mark.parametrize("where", [np.s_[:, -1], np.s_[-1, :], np.s_[-1, -1]])
    def test_s_is_finite_for_an_object_at_the_last_row_or_column(self, where):
        truth = np.zeros((8, 8), np.uint8)
        truth[where] = 255
        assert scores((truth, truth))["s_measure"] == pytest.approx(1)

    def test_weighted_f_lies_between_a_wrong_and_a_right_map(self):
        blurred = np.where(square() > 0, 255, np.where(square(edge=24) > 0, 128, 0))
        assert 0.5 < scores((blurred.astype(np.uint8), square()))["weighted_f"] < 1

    def test_a_map_is_scaled_so_contrast_and_brightness_do_not_matter(self):
        rng = np.random.default_rng(1)
        saliency = rng.integers(0, 2, (20, 20), np.uint8)
        truth = square(20, 8)
        plain = scores((saliency * np.uint8(255), truth))
        assert scores((saliency * np.uint8(40) + np.uint8(90), truth)) == pytest.approx(plain)

    def test_a_truth_is_salient_above_128(self):
        saliency = grey([0, 0, 255, 255])
        assert scores((saliency, grey([0, 128, 129, 255])))["mae"] == 0

    def test_precision_and_recall_are_listed_by_rising_threshold(self):
        result = score_set([score_image(grey([0, 100, 200, 255]), grey([0, 0, 255, 255]))])
        assert len(result.precision) == len(result.recall) == 256
        picked = [0, 50, 150, 230]
        assert [result.precision[t] for t in picked] == pytest.approx([1 / 2, 2 / 3, 1, 1])
        assert [result.recall[t] for t in picked] == pytest.approx([1, 1, 1, 1 / 2])

    def test_sizes_must_agree(self):
        with pytest.raises(ValueError, match=r"[Ss]hape"):
            score_image(square(40), square(20, 8))

    def test_an_image_has_scores_of_its_own(self):
        one = score_image(square(), square())
        assert (one.mae, one.weighted_f, one.s_measure) == pytest.approx((0, 1, 1))
        assert score_image(square(), 0 * square()).empty_truth


def test_a_set_scores_as_pysodmetrics_scores_it_in_one_go():
    rng = np.random.default_rng(3)
    pairs = []
    for edge in (0, 4, 16, 30, 40):
        truth = square(edge=edge)
        noise = rng.integers(-60, 60, truth.shape)
        pairs.append((np.clip(truth // 2 + 64 + noise, 0, 255).astype(np.uint8), truth))
    measures = {
        "mae": py_sod_metrics.MAE(),
        "wfm": py_sod_metrics.WeightedFmeasure(beta=1),
        "sm": py_sod_metrics.Smeasure(alpha=0.5),
        "em": py_sod_metrics.Emeasure(),
        "f": py_sod_metrics.FmeasureV2({"f": py_sod_metrics.FmeasureHandler(True, True, beta=0.3)}),
    }
    results = {}
    for measure in measures.values():
        for saliency, truth in pairs:
            measure.step(saliency, truth)
        results |= measure.get_results()
    found = scores(*pairs)
    wanted = {
        "mae": results["mae"],
        "weighted_f": results["wfm"],
        "s_measure": results["sm"],
        "max_e": results["em"]["curve"].max(),
        "mean_e": results["em"]["curve"].mean(),
        "adaptive_e": results["em"]["adp"],
        "max_f": results["f"]["dynamic"].max(),
        "mean_f": results["f"]["dynamic"].mean(),
        "adaptive_f": results["f"]["adaptive"],
    }
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-6)


@settings(deadline=None)
@given(
    arrays(np.uint8, (9, 7)),
    arrays(np.uint8, (9, 7), elements=st.sampled_from([0, 255])),
)
def test_every_number_is_finite_whatever_the_map_and_truth(saliency, truth):
    found = scores((saliency, truth))
    assert list(found) == [metric.key for metric in METRICS]
    assert np.isfinite(list(found.values())).all()
