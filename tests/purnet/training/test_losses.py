from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from purnet.data.superpixels import IGNORE
from purnet.network.purnet import PurNetOutput
from purnet.training.losses import (
    Criterion,
    LossWeights,
    iou_loss,
    region_means,
    structural_similarity_loss,
)


def random_case(seed: int, regions: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand((2, 1, 12, 10), generator=generator)
    truth = (torch.rand((2, 1, 12, 10), generator=generator) > 0.6).float()
    labels = torch.randint(0, regions, (2, 1, 12, 10), generator=generator)
    return saliency, truth, labels


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
    means, present = region_means(values, labels)
    assert means.tolist() == [[0.5, 0.0, 0.5]]
    assert present.tolist() == [[True, False, True]]


@pytest.mark.parametrize("seed", range(4))
def test_structure_loss_equals_the_dense_definition(seed: int) -> None:
    case = random_case(seed)
    assert structural_similarity_loss(*case).item() == pytest.approx(
        dense_reference(*case), rel=1e-4, abs=1e-7
    )


@pytest.mark.parametrize("seed", range(4))
def test_structure_loss_is_not_negative_and_zero_for_equal_differences(seed: int) -> None:
    saliency, truth, labels = random_case(seed)
    assert structural_similarity_loss(saliency, truth, labels) >= 0
    # A constant offset leaves every difference between regions as it is.
    offset = 0.5 * truth + 0.25
    half = 0.5 * truth
    assert structural_similarity_loss(offset, half, labels).item() == pytest.approx(0, abs=1e-6)


def test_structure_loss_does_not_depend_on_the_names_of_regions() -> None:
    saliency, truth, labels = random_case(1)
    renamed = torch.tensor([40, 3, 17, 0, 99, 5, 28])[labels]
    assert structural_similarity_loss(saliency, truth, renamed).item() == pytest.approx(
        structural_similarity_loss(saliency, truth, labels).item(), rel=1e-5
    )


def test_ignored_pixels_have_no_say() -> None:
    saliency, truth, labels = random_case(2)
    labels[:, :, :4] = IGNORE
    changed = saliency.clone()
    changed[:, :, :4] = 1 - changed[:, :, :4]
    assert structural_similarity_loss(changed, truth, labels) == structural_similarity_loss(
        saliency, truth, labels
    )
    labels[:] = IGNORE
    assert structural_similarity_loss(saliency, truth, labels) == 0


def test_an_inverted_map_has_finite_gradients_that_lead_back() -> None:
    labels = torch.arange(4).repeat_interleave(4).view(1, 1, 4, 4)
    truth = (labels >= 2).float()
    logits = torch.where(truth > 0, -20.0, 20.0).requires_grad_()
    loss = structural_similarity_loss(logits.sigmoid(), truth, labels)
    loss.backward()
    assert loss > 1
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    milder = structural_similarity_loss((logits * 0.1).sigmoid(), truth, labels)
    assert milder < loss


def test_iou_loss_of_empty_maps_is_zero_and_of_disjoint_ones_near_one() -> None:
    empty, full = torch.zeros(1, 1, 20, 20), torch.ones(1, 1, 20, 20)
    assert iou_loss(empty, empty) == 0
    assert iou_loss(full, full) == 0
    assert iou_loss(empty, full) > 0.99


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
    losses = criterion(output_of(8, attention=False), *targets())
    assert set(losses) == {"saliency", "structure"}
    total = losses["saliency"] + 2 * losses["structure"]
    assert criterion.total(losses).item() == pytest.approx(total.item())


def test_every_level_counts_by_its_weight() -> None:
    weights = LossWeights(saliency=1, structure=1, iou=1, promotion=1, object=1, error=1)
    output = output_of(8, attention=True)

    def losses(*levels: float) -> dict[str, Tensor]:
        return Criterion(weights=weights, levels=levels)(output, *targets())

    fine, coarse, mixed = losses(1, 0), losses(0, 1), losses(2, 0.25)
    for name, loss in mixed.items():
        assert loss.item() == pytest.approx((2 * fine[name] + 0.25 * coarse[name]).item()), name
        assert fine[name] != coarse[name]


def test_every_term_reaches_its_own_head() -> None:
    weights = LossWeights(saliency=1, structure=1, iou=1, promotion=1, object=1, error=1)
    output = output_of(8, attention=True)
    criterion = Criterion(weights=weights, levels=[1, 1])
    losses = criterion(output, *targets())
    heads = {"saliency": "saliency", "structure": "saliency", "iou": "saliency"}
    for name in ("saliency", "structure", "iou", "promotion", "object", "error"):
        own = heads.get(name, name)
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
    optimiser = torch.optim.Adam([error], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        criterion.total(
            criterion(output, truth, torch.zeros(1, 1, 4, 4, dtype=torch.long))
        ).backward()
        optimiser.step()
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
    criterion = Criterion(weights=LossWeights(saliency=1), levels=[1, 1])
    assert (
        criterion(output, truth, regions)["saliency"] > criterion(quiet, truth, regions)["saliency"]
    )
