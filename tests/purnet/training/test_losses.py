from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import py_sod_metrics
import pytest
import torch
from torch import Tensor

from purnet.data.superpixels import IGNORE
from purnet.network.purnet import PurNetOutput
from purnet.network.variants import build
from purnet.training.losses import (
    Criterion,
    boundary_weights,
    iou_loss,
    region_means,
    s_measure_loss,
    structural_similarity_loss,
)
from purnet.training.recipe import ATTENTION_LOSSES, LossWeights

EVERY_LOSS = LossWeights.model_validate(dict.fromkeys(LossWeights.model_fields, 1.0))


def random_case(seed: int, regions: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand((2, 1, 12, 10), generator=generator)
    truth = (torch.rand((2, 1, 12, 10), generator=generator) > 0.6).float()
    labels = torch.randint(0, regions, (2, 1, 12, 10), generator=generator)
    return saliency, truth, labels


def loss_of(saliency: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
    """The loss, given more labels than there are."""
    return structural_similarity_loss(saliency, truth, labels, 120)


def dense_reference(saliency: Tensor, truth: Tensor, labels: Tensor) -> float:
    """The definition, by loops: normalise both matrices, then Kullback-Leibler."""
    losses = []
    for s_map, g_map, l_map in zip(saliency, truth, labels, strict=True):
        present = [int(label) for label in l_map.unique() if label != IGNORE]
        s = [float(s_map[l_map == label].double().mean()) for label in present]
        g = [float(g_map[l_map == label].double().mean()) for label in present]
        pairs = list(itertools.product(range(len(present)), repeat=2))
        p = [(g[i] - g[j] + 1) / 2 for i, j in pairs]
        q = [(s[i] - s[j] + 1) / 2 for i, j in pairs]
        losses.append(
            sum(
                a / sum(p) * math.log((a / sum(p)) / (max(b, 0.5e-6) / sum(q)))
                for a, b in zip(p, q, strict=True)
                if a > 0
            )
        )
    return sum(losses) / len(losses)


def test_region_means_of_a_hand_made_case() -> None:
    values = torch.tensor([[[[0.0, 1.0], [0.5, 0.9]]]])
    labels = torch.tensor([[[[0, 0], [2, IGNORE]]]])
    means, present = region_means(values, labels, 3)
    assert means.tolist() == [[0.5, 0.0, 0.5]]
    assert present.tolist() == [[True, False, True]]


@pytest.mark.parametrize("seed", range(4))
def test_structure_loss_equals_the_dense_definition(seed: int) -> None:
    case = random_case(seed)
    assert loss_of(*case).item() == pytest.approx(dense_reference(*case), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_structure_loss_is_not_negative_and_zero_for_equal_differences(seed: int) -> None:
    saliency, truth, labels = random_case(seed)
    assert loss_of(saliency, truth, labels) >= 0
    # A constant offset leaves every difference between regions as it is.
    offset = 0.5 * truth + 0.25
    half = 0.5 * truth
    assert loss_of(offset, half, labels).item() == pytest.approx(0, abs=1e-6)


def test_structure_loss_does_not_depend_on_the_names_of_regions() -> None:
    saliency, truth, labels = random_case(1)
    renamed = torch.tensor([40, 3, 17, 0, 99, 5, 28])[labels]
    assert loss_of(saliency, truth, renamed).item() == pytest.approx(
        loss_of(saliency, truth, labels).item(), rel=1e-5
    )


def test_ignored_pixels_have_no_say() -> None:
    saliency, truth, labels = random_case(2)
    labels[:, :, :4] = IGNORE
    changed = saliency.clone()
    changed[:, :, :4] = 1 - changed[:, :, :4]
    assert loss_of(changed, truth, labels) == loss_of(saliency, truth, labels)
    labels[:] = IGNORE
    assert loss_of(saliency, truth, labels) == 0


def test_an_inverted_map_has_finite_gradients_that_lead_back() -> None:
    labels = torch.arange(4).repeat_interleave(4).view(1, 1, 4, 4)
    truth = (labels >= 2).float()
    logits = torch.where(truth > 0, -20.0, 20.0).requires_grad_()
    loss = loss_of(logits.sigmoid(), truth, labels)
    loss.backward()
    assert loss > 1
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    milder = loss_of((logits * 0.1).sigmoid(), truth, labels)
    assert milder < loss


def test_iou_loss_of_empty_maps_is_zero_and_of_disjoint_ones_near_one() -> None:
    empty, full = torch.zeros(1, 1, 20, 20), torch.ones(1, 1, 20, 20)
    assert iou_loss(empty, empty) == 0
    assert iou_loss(full, full) == 0
    assert iou_loss(empty, full) > 0.99


@pytest.mark.parametrize("size", [(12, 10), (40, 40), (33, 57)])
@pytest.mark.parametrize("seed", range(3))
def test_s_measure_loss_is_what_scoring_says(size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(3, 1, *size)
    truth[0, :, 2:9, 1:6] = 1
    truth[1, :, 8:, 7:] = 1
    truth[2, :, :2, 3:] = 1
    saliency = 0.7 * truth + 0.3 * torch.rand(truth.shape, generator=generator)
    losses = []
    for s_map, g_map in zip(saliency, truth, strict=True):
        measure = py_sod_metrics.Smeasure(alpha=0.5)
        measure.step(s_map[0].double().numpy(), g_map[0].numpy() > 0.5, normalize=False)
        losses.append(1 - measure.get_results()["sm"])
    assert s_measure_loss(saliency, truth).item() == pytest.approx(np.mean(losses), abs=2e-4)


def test_s_measure_loss_of_empty_and_full_truths_is_how_bright_and_dark_maps_are() -> None:
    saliency = torch.full((1, 1, 8, 8), 0.3)
    assert s_measure_loss(saliency, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(0.3)
    assert s_measure_loss(saliency, torch.ones(1, 1, 8, 8)).item() == pytest.approx(0.7)


@pytest.mark.parametrize("salient", [0, 1, 5, 64])
def test_s_measure_loss_has_finite_gradients_at_its_ends(salient: int) -> None:
    truth = torch.zeros(64)
    truth[:salient] = 1
    for logits in (torch.full((64,), 200.0), torch.full((64,), -200.0), 200 * (2 * truth - 1)):
        leaf = logits.view(1, 1, 8, 8).clone().requires_grad_()
        loss = s_measure_loss(leaf.sigmoid(), truth.view(1, 1, 8, 8))
        loss.backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert loss.item() == pytest.approx(0, abs=1e-3)


def test_s_measure_loss_raises_an_object_too_small_for_the_map() -> None:
    truth = torch.zeros(1, 1, 10, 10)
    truth[..., 4:6, 4:6] = 0.45  # as pooling leaves of an object smaller than a pixel
    saliency = torch.full_like(truth, 0.3).requires_grad_()
    s_measure_loss(saliency, truth).backward()
    assert saliency.grad is not None
    assert (saliency.grad[..., 4:6, 4:6] < 0).all()


def test_an_object_that_is_grey_costs_less_than_one_missed_every_other_time() -> None:
    truth = torch.zeros(1, 1, 20, 20)
    truth[..., 5:15, 5:15] = 1

    def costs(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        found, missed, grey = (loss(level * truth, truth).item() for level in (1.0, 0.0, 0.5))
        return grey, (found + missed) / 2

    grey, gambled = costs(s_measure_loss)
    assert grey < gambled - 0.1
    grey, gambled = costs(iou_loss)
    assert grey == pytest.approx(gambled, abs=0.01)


def output_of(size: int, *, attention: bool) -> PurNetOutput:
    generator = torch.Generator().manual_seed(5)

    def maps() -> list[Tensor]:
        sizes = (size, size // 2)
        return [torch.randn((2, 1, s, s), generator=generator).requires_grad_() for s in sizes]

    if not attention:
        return PurNetOutput(saliency=maps())
    return PurNetOutput(saliency=maps(), promotion=maps(), object=maps(), error=maps())


def targets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    truth = (torch.rand((2, 1, 16, 16), generator=generator) > 0.5).float()
    return truth, torch.randint(0, 5, (2, 1, 16, 16), generator=generator)


def test_criterion_returns_just_the_terms_that_have_weight() -> None:
    criterion = Criterion(weights=LossWeights(saliency=1, structure=2), levels=[1, 0.5])
    losses = criterion(output_of(8, attention=False), *targets(), 5)
    assert set(losses) == {"saliency", "structure"}
    total = losses["saliency"] + 2 * losses["structure"]
    assert criterion.total(losses).item() == pytest.approx(total.item())


def test_every_level_counts_by_its_weight() -> None:
    output = output_of(8, attention=True)

    def losses(*levels: float) -> dict[str, Tensor]:
        return Criterion(weights=EVERY_LOSS, levels=levels)(output, *targets(), 5)

    fine, coarse, mixed = losses(1, 0), losses(0, 1), losses(2, 0.25)
    for name, loss in mixed.items():
        assert loss.item() == pytest.approx((2 * fine[name] + 0.25 * coarse[name]).item()), name
        assert fine[name] != coarse[name]


def test_a_refined_map_counts_as_the_finest_level_does() -> None:
    weights = LossWeights(saliency=1, iou=1, s_measure=1)
    output = output_of(8, attention=False)
    criterion = Criterion(weights=weights, levels=[0.7, 0.25])
    plain = criterion(output, *targets(), 5)
    twice = criterion(PurNetOutput([output.saliency[0], *output.saliency]), *targets(), 5)
    alone = Criterion(weights=weights, levels=[0.7, 0])(output, *targets(), 5)
    for name, loss in twice.items():
        assert loss.item() == pytest.approx((plain[name] + alone[name]).item()), name


def test_every_term_reaches_its_own_head() -> None:
    output = output_of(8, attention=True)
    criterion = Criterion(weights=EVERY_LOSS, levels=[1, 1])
    losses = criterion(output, *targets(), 5)
    for name in LossWeights.model_fields:
        own = name if name in ATTENTION_LOSSES else "saliency"
        for head in ("saliency", "promotion", "object", "error"):
            for logits in getattr(output, head):
                (gradient,) = torch.autograd.grad(
                    losses[name], logits, retain_graph=True, allow_unused=True
                )
                assert (gradient is not None and bool(gradient.any())) == (head == own), (
                    f"{name} and {head}"
                )


def test_the_error_head_learns_the_signed_residual() -> None:
    truth = torch.ones(1, 1, 4, 4)
    objects = torch.full((1, 1, 4, 4), -1.0)
    error = torch.zeros(1, 1, 4, 4, requires_grad=True)
    output = PurNetOutput(saliency=[objects], promotion=[objects], object=[objects], error=[error])
    criterion = Criterion(weights=LossWeights(saliency=0, error=1), levels=[1])
    optimizer = torch.optim.Adam([error], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        criterion.total(
            criterion(output, truth, torch.zeros(1, 1, 4, 4, dtype=torch.long), 1)
        ).backward()
        optimizer.step()
    residual = 1 - torch.sigmoid(torch.tensor(-1.0))
    assert torch.allclose(error.tanh(), residual.expand_as(error), atol=0.01)


def test_saliency_counts_more_where_an_error_is_expected() -> None:
    truth, regions = targets()
    output = output_of(16, attention=True)
    quiet = PurNetOutput(
        saliency=output.saliency,
        promotion=output.promotion,
        object=output.object,
        error=[torch.zeros_like(logits) for logits in output.error],
    )
    criterion = Criterion(weights=LossWeights(saliency=1, error=1), levels=[1, 1])
    plain = criterion(quiet, truth, regions, 5)["saliency"]
    assert criterion(output, truth, regions, 5)["saliency"] > plain
    # Errors that nothing was trained to expect are not expected.
    untrained = Criterion(weights=LossWeights(saliency=1), levels=[1, 1])
    assert untrained(output, truth, regions, 5)["saliency"] == plain


def test_pixels_near_the_boundary_count_more_and_all_together_the_same() -> None:
    truth = torch.zeros(1, 1, 40, 40)
    truth[..., 10:30, 10:30] = 1
    weights = boundary_weights(truth, 4.0)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0, 0, 10, 20] > 2 * weights[0, 0, 20, 20]
    assert weights[0, 0, 9, 20] > 2 * weights[0, 0, 0, 0]
    # Nothing lies beyond the border: a truth without a boundary weighs alike up to it.
    assert torch.allclose(boundary_weights(torch.ones(1, 1, 40, 40), 4.0), torch.ones(()))


def test_a_fault_at_the_boundary_costs_more_by_the_boundary_weight() -> None:
    truth = torch.zeros(1, 1, 40, 40)
    truth[..., 10:30, 10:30] = 1
    regions = torch.zeros(1, 0, 40, 40, dtype=torch.long)

    def cost(fault: tuple[slice, slice], boundary: float) -> float:
        logits = torch.where(truth > 0, 3.0, -3.0)
        logits[0, 0][fault] *= -1
        criterion = Criterion(weights=LossWeights(), levels=[1], boundary=boundary)
        return criterion(PurNetOutput(saliency=[logits]), truth, regions, 0)["saliency"].item()

    edge, inside = (slice(10, 12), slice(15, 25)), (slice(19, 21), slice(15, 25))
    assert cost(edge, 0.0) == pytest.approx(cost(inside, 0.0))
    assert cost(edge, 4.0) > 1.3 * cost(inside, 4.0)


@pytest.mark.parametrize("variant", ["purnet-lite0", "purnet-lite0-s2"])
def test_a_step_reads_nothing_back_from_the_device(variant: str) -> None:
    """Tensors on the meta device have no values: reading one raises."""
    criterion = Criterion(weights=EVERY_LOSS, levels=[1] * 4, boundary=4.0)
    with torch.device("meta"):
        network = build(variant)
        images, truth = torch.empty(2, 3, 64, 64), torch.empty(2, 1, 64, 64)
        regions = torch.empty(2, 1, 64, 64, dtype=torch.long)
        total = criterion.total(criterion(network(images), truth, regions, 30))
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    with pytest.raises(RuntimeError):
        total.item()
