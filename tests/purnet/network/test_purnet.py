"""The network's parts, against numbers made by hand and what its docstrings promise."""

from __future__ import annotations

from dataclasses import astuple
from math import exp

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purnet.network import variants
from purnet.network.blocks import Head, resize_logits, transposed_upsample
from purnet.network.branches import GatePromotion, RectificationBranch, SoftmaxPromotion
from purnet.network.purnet import Normalize, PurNet, PurNetOutput

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def lite() -> PurNet:
    torch.manual_seed(0)
    return variants.build("purnet-lite0").eval()


def _images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# --- attentions


def test_softmax_promotion_by_hand() -> None:
    # Two channels of 1 x 2 positions: [0, 1] and [2, 2].
    x = torch.tensor([[[[0.0, 1.0]], [[2.0, 2.0]]]])
    e = exp(1)
    # Softmax over positions of each channel, then over channels of the means 0.5 and 2.
    first, second = exp(0.5) / (exp(0.5) + exp(2)), exp(2) / (exp(0.5) + exp(2))
    wanted = [
        [[[first / (1 + e), first * e / (1 + e)]], [[second / 2, second / 2]]],
    ]

    torch.testing.assert_close(SoftmaxPromotion()(x), torch.tensor(wanted))


def test_softmax_promotion_sums_to_one_over_each_image() -> None:
    attention = SoftmaxPromotion()(_images(2, 8, 5, 7))

    torch.testing.assert_close(attention.sum(dim=(1, 2, 3)), torch.ones(2))


def test_gate_promotion_by_hand() -> None:
    gate = GatePromotion(1)
    for conv, weight in ((gate.spatial, 2.0), (gate.channel, 3.0)):
        nn.init.constant_(conv.weight, weight)
        nn.init.zeros_(conv.bias)

    attention = gate(torch.tensor([[[[0.0, 1.0]]]]))

    channel = 1 / (1 + exp(-1.5))  # of 3 times the mean 0.5
    wanted = torch.tensor([[[[0.5 * channel, channel / (1 + exp(-2))]]]])
    torch.testing.assert_close(attention, wanted)


def test_rectification_by_hand() -> None:
    def head() -> Head:
        head = Head(width=1, blocks=[], upsample=nn.Identity())
        nn.init.ones_(head.logits.weight)
        nn.init.zeros_(head.logits.bias)
        return head

    class Times(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    branch = RectificationBranch(
        object_features=Times(2), error_features=Times(5), object_head=head(), error_head=head()
    )
    x = torch.tensor([[[[0.0, 0.1, -1.0]]]])

    attention, objects, errors = branch(x)

    torch.testing.assert_close(attention, (3 * x).tanh())
    torch.testing.assert_close(objects, 2 * x * (1 + (3 * x).tanh()))
    torch.testing.assert_close(errors, 3 * x)
    assert torch.equal(branch.attend(x), attention)


# --- building blocks


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_transposed_upsample_starts_as_bilinear(factor: int) -> None:
    x = _images(1, 2, 5, 6)

    found = transposed_upsample(2, factor)(x)

    wanted = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    # At the border it fades out where interpolation repeats the last position.
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(found[inside], wanted[inside])
    assert found.shape == wanted.shape


def test_normalize() -> None:
    normalize = Normalize(mean=(0.5, 0.0, 1.0), std=(0.5, 2.0, 1.0))

    found = normalize(torch.ones(1, 3, 1, 1))

    assert found.flatten().tolist() == [1.0, 0.5, 0.0]
    assert set(normalize.state_dict()) == {"mean", "std"}


def test_resize_logits_leaves_the_right_size_alone() -> None:
    logits = _images(1, 1, 8, 8)

    assert resize_logits(logits, (8, 8)) is logits
    assert resize_logits(logits, (16, 32)).shape == (1, 1, 16, 32)


# --- the whole


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", variants.VARIANTS)
def test_predict_is_the_finest_map_of_forward(
    name: str, attention: bool, height: int, width: int
) -> None:
    network = variants.build(name, attention=attention).eval()
    images = _images(2, 3, height, width)

    output: PurNetOutput = network(images)
    logits = network.predict(images)

    assert logits.shape == (2, 1, height, width)
    assert torch.equal(logits, resize_logits(output.saliency[0], (height, width)))
    levels = len(network.backbone.strides)
    maps = levels + variants.get(name).refine_edges
    assert [len(found) for found in astuple(output)] == [maps, *[levels * attention] * 3]


@torch.no_grad()
def test_a_refinement_of_edges_starts_as_upsampling_and_acts_at_stride_2(lite: PurNet) -> None:
    network = variants.build("purnet-lite0-s2").eval()
    left = network.load_state_dict(lite.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {key.rsplit(".edges.")[0] for key in left.missing_keys} == {"purification"}
    images = _images(1, 3, 64, 96)

    refined, finest = network(images).saliency[:2]
    assert refined.shape == (1, 1, 32, 48)
    assert torch.equal(finest, lite(images).saliency[0])
    assert torch.equal(refined, resize_logits(finest, (32, 48)))

    nn.init.ones_(network.purification.edges.logits.weight)
    assert not torch.equal(network(images).saliency[0], refined)
    assert torch.equal(network(images).saliency[1], finest)


@torch.no_grad()
def test_global_context_starts_as_the_identity_and_lets_every_position_see_the_photo() -> None:
    plain = variants.build("purnet-lite0-s2").eval()
    network = variants.build("purnet-lite0-gc").eval()
    left = network.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {key.split(".")[0] for key in left.missing_keys} == {"context"}
    images = _images(1, 3, 64, 96)
    assert torch.equal(network.predict(images), plain.predict(images))

    nn.init.normal_(network.context.merge.weight)
    features = _images(2, 320, 5, 7)
    before = network.context(features)
    assert before.shape == features.shape
    features[0, :, 4, 6] += 1
    after = network.context(features)
    assert not torch.isclose(after[0, :, 0, 0], before[0, :, 0, 0]).all()
    assert torch.allclose(after[1], before[1])


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one(lite: PurNet) -> None:
    images = _images(2, 3, 96, 96)

    singly = torch.cat([lite.predict(image[None]) for image in images])

    torch.testing.assert_close(singly, lite.predict(images), atol=1e-5, rtol=0)


def test_a_side_that_strides_do_not_divide_is_refused(lite: PurNet) -> None:
    for run in (lite, lite.predict):
        with pytest.raises(ValueError, match=r"multiples of 32, got 64 x 100"):
            run(_images(1, 3, 64, 100))


# --- who learns from which loss


PARTS = ("backbone", "purification", "promotion", "rectification")


def _reached(network: PurNet, logits: list[Tensor]) -> set[str]:
    """Parts that get a gradient from the sum of these logits."""
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(
        torch.stack([x.square().sum() for x in logits]).sum(),
        list(parameters.values()),
        allow_unused=True,
        retain_graph=True,
    )
    return {
        name.split(".")[0]
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and gradient.abs().sum() > 0
    }


@pytest.mark.parametrize(
    "name", ["purnet-lite0", "purnet-lite0-s2", "purnet-lite0-gc", "purnet-resnet50"]
)
def test_isolated_losses_reach_only_their_own_parts(name: str) -> None:
    torch.manual_seed(0)
    network = variants.build(name)
    images = _images(2, 3, 64, 64)

    output = network(images, isolate=True)

    context = set() if network.context is None else {"context"}
    assert _reached(network, output.saliency) == {"backbone", "purification"} | context
    assert _reached(network, output.promotion) == {"promotion"}
    assert _reached(network, output.object) == {"rectification"}
    assert _reached(network, output.error) == {"rectification"}


def test_joint_losses_reach_everything_they_depend_on(lite: PurNet) -> None:
    images = _images(1, 3, 64, 64)

    output = lite(images)

    assert _reached(lite, output.saliency) == set(PARTS)
    assert _reached(lite, output.promotion) == {"backbone", "promotion"}
    assert _reached(lite, output.error) == {"backbone", "rectification"}


@torch.no_grad()
def test_isolation_changes_no_value(lite: PurNet) -> None:
    images = _images(1, 3, 64, 64)

    isolated, joint = lite(images, isolate=True), lite(images)

    for a, b in zip(astuple(isolated), astuple(joint), strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


# --- weights of a smaller network ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "attention"),
    [("purnet-lite0", False), ("purnet-lite0", True), ("purnet-lite0-s2", True)],
)
def test_a_larger_network_starts_from_a_smaller_one(variant: str, *, attention: bool) -> None:
    larger = variants.build("purnet-lite0-gc")
    smaller = variants.build(variant, attention=attention)
    assert larger.incompatible_keys(smaller.state_dict()) == []
    larger.load_state_dict(smaller.state_dict(), strict=False)


def test_tensors_that_cannot_start_a_network_are_named() -> None:
    network = variants.build("purnet-lite0", attention=False)
    tensors = network.state_dict()
    name = "backbone.stem.1.weight"
    others = network.incompatible_keys(variants.build("purnet-lite0").state_dict())
    assert others[0].startswith("promotion.")
    assert network.incompatible_keys({**tensors, name: torch.zeros(2)}) == [name]
    assert network.incompatible_keys({k: x for k, x in tensors.items() if k != name}) == [name]
