"""Named networks: what each is made of, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from purnet.errors import ModelError
from purnet.network import variants
from purnet.network.branches import GatePromotion, SoftmaxPromotion
from purnet.network.purnet import PurNet

pytestmark = pytest.mark.needs_torch


def _on_shapes(name: str) -> PurNet:
    """A network without numbers: enough to count."""
    with torch.device("meta"):
        return variants.build(name).eval()


def _predict_flop(network: PurNet, side: int) -> int:
    with FlopCounterMode(display=False) as counter:
        network.predict(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [variants.DEFAULT_VARIANT, "purnet-lite0"])
def test_the_default_and_its_kin_are_small(name: str) -> None:
    network = _on_shapes(name)

    assert sum(p.numel() for p in network.parameters()) <= 4_000_000
    assert _predict_flop(network, 320) <= 2.5e9


@pytest.mark.parametrize(
    ("name", "width", "strides", "promotion"),
    [
        ("purnet-lite0", 64, (4, 8, 16, 32), GatePromotion),
        ("purnet-lite0-s2", 64, (4, 8, 16, 32), GatePromotion),
        ("purnet-lite0-gc", 64, (4, 8, 16, 32), GatePromotion),
        ("purnet-lite2", 64, (4, 8, 16, 32), GatePromotion),
        ("purnet-resnet50", 128, (4, 4, 8, 16, 16), SoftmaxPromotion),
        ("purnet-vgg16", 128, (2, 4, 8, 16), SoftmaxPromotion),
    ],
)
def test_parts(name: str, width: int, strides: tuple[int, ...], promotion: type[nn.Module]) -> None:
    network = _on_shapes(name)

    assert network.backbone.strides == strides
    assert network.stride == strides[-1]
    assert network.promotion is not None
    for branch in network.promotion.branches:
        assert isinstance(branch.attention, promotion)
        assert branch.head.logits.in_channels == width


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_without_attention_nothing_of_it_is_there(name: str) -> None:
    with torch.device("meta"):
        network = variants.build(name, attention=False)

    assert network.promotion is None
    assert network.rectification is None
    assert not any("refine" in parameter for parameter, _ in network.named_parameters())


def test_without_attention_the_rest_is_named_alike() -> None:
    whole = {name: p.shape for name, p in _on_shapes("purnet-resnet50").named_parameters()}
    with torch.device("meta"):
        stage1 = variants.build("purnet-resnet50", attention=False)

    assert {name: p.shape for name, p in stage1.named_parameters()}.items() <= whole.items()


def test_released_normalisation_constants() -> None:
    network = variants.build("purnet-resnet50", attention=False)

    state = network.state_dict()

    torch.testing.assert_close(
        state["normalize.mean"].flatten(), torch.tensor([0.4923, 0.4634, 0.3974])
    )
    torch.testing.assert_close(
        state["normalize.std"].flatten(), torch.tensor([0.2737, 0.2659, 0.2836])
    )


@pytest.mark.parametrize("name", ["purnet-lite1", "timm/", "timm", ""])
def test_an_unknown_name_tells_the_known(name: str) -> None:
    with pytest.raises(ModelError, match=r"unknown variant .* purnet-resnet50"):
        variants.build(name)
