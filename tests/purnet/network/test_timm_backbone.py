"""Backbones by timm's names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from purnet.errors import ModelError
from purnet.network import variants
from purnet.network.backbones import load_classifier
from purnet.network.timm_backbone import TimmBackbone

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_network_on_a_timm_backbone() -> None:
    torch.manual_seed(0)
    network = variants.build("timm/test_efficientnet").eval()
    images = torch.rand(1, 3, 64, 96)

    assert network.backbone.strides == (2, 4, 8, 16, 32)
    output = network(images)
    assert [tuple(x.shape[-2:]) for x in output.error][:2] == [(32, 48), (16, 24)]
    assert network.predict(images).shape == (1, 1, 64, 96)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet"])
def test_families(name: str) -> None:
    backbone = TimmBackbone(name).eval()

    found = backbone(torch.rand(1, 3, 320, 320))

    assert [tuple(x.shape[1:]) for x in found] == [
        (c, 320 // s, 320 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]


def test_classifier_weights_are_taken() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", pretrained=False).eval()
    backbone = TimmBackbone("test_resnet").eval()
    images = torch.rand(1, 3, 64, 64)

    load_classifier(backbone, whole.state_dict())

    torch.testing.assert_close(backbone(images)[-1], whole.forward_features(images))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet_of_nobody", "timm knows no model named 'resnet_of_nobody'"),
        ("hf-hub:someone/something", "timm knows no model"),
        ("mixer_s32_224", "takes no image of 320x320 pixels"),
        ("mambaout_femto", r"shapes \[\(80, 80, 48\).* as \(C, H, W\)"),  # channels-last
    ],
)
def test_a_model_that_will_not_do(name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        variants.build(f"timm/{name}")


class _Features(nn.Module):
    """What timm returns for a model with these strides."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides
        self.pretrained_cfg: dict[str, Any] = {}
        self.feature_info = SimpleNamespace(
            channels=lambda: [3] * len(strides), reduction=lambda: list(strides)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images[..., ::stride, ::stride] for stride in self.strides]


@pytest.mark.parametrize("strides", [(4, 6), (8, 4)])
def test_strides_must_divide_in_order(
    monkeypatch: pytest.MonkeyPatch, strides: tuple[int, ...]
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: _Features(strides))

    with pytest.raises(ModelError, match="not multiples in order"):
        TimmBackbone("test_resnet")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(ModelError, match=r"pip install 'purnet-serve\[timm\]'"):
        TimmBackbone("test_resnet")
