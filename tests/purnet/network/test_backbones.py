"""Backbones against the libraries they follow, and against photos of things with names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50, vgg16

from purnet.errors import ModelError
from purnet.network.backbones import (
    VGG16,
    Backbone,
    EfficientNetLite,
    EfficientNetLite0,
    EfficientNetLite2,
    ResNet50,
    load_classifier,
    load_imagenet_lite,
    load_in_order,
)
from purnet.network.purnet import Normalize

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", [EfficientNetLite0, EfficientNetLite2, ResNet50, VGG16])
def test_features_are_as_published(backbone: type[Backbone]) -> None:
    found = backbone().eval()(_images(2, 3, 64, 96))

    assert [tuple(x.shape) for x in found] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


# --- EfficientNet-Lite


Lite = tuple[EfficientNetLite, list[Tensor]]


@pytest.fixture(scope="module", params=[EfficientNetLite0, EfficientNetLite2])
def lite(request: pytest.FixtureRequest) -> Lite:
    """A backbone trained on ImageNet, and its classifier's tensors."""
    backbone = request.param()
    rest = load_imagenet_lite(backbone)
    return backbone.eval(), rest


@pytest.mark.parametrize("side", [64, 320])
def test_a_lite_backbone_is_timms(lite: Lite, side: int) -> None:
    import timm

    backbone, rest = lite
    name = f"tf_{type(backbone).__name__}".lower().replace("netlite", "net_lite")
    other = timm.create_model(name, pretrained=False)
    load_in_order(other, [*backbone.state_dict().values(), *rest])
    features = timm.create_model(
        name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)
    )
    load_in_order(features, other.state_dict().values())
    images = _images(1, 3, side, side)

    for found, wanted in zip(backbone(images), features.eval()(images), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


IMAGENET_SIDE = {EfficientNetLite0: 224, EfficientNetLite2: 260}


def _as_evaluated(photo: Image.Image, at: int) -> Tensor:
    """The square in the middle, 7/8 as wide as the photo is short: ImageNet's custom."""
    side = min(photo.size) * 7 // 8
    left, top = ((length - side) // 2 for length in photo.size)
    square = photo.crop((left, top, left + side, top + side)).resize((at, at))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("photo", "classes"),
    [
        ("chelsea", range(281, 286)),  # cats: tabby, tiger, Persian, Siamese, Egyptian
        ("coffee", (504, 967, 968)),  # coffee mug, espresso, cup
        ("rocket", (657, 744)),  # missile, projectile
    ],
)
def test_a_lite_backbone_knows_what_it_sees(
    lite: Lite, photo: str, classes: range | tuple[int, ...]
) -> None:
    from skimage import data

    backbone, rest = lite
    head = nn.Sequential(
        nn.Conv2d(backbone.channels[-1], 1280, 1, bias=False),
        nn.BatchNorm2d(1280, eps=1e-3),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    )
    assert load_in_order(head, rest) == []
    head.eval()
    normalize = Normalize(mean=backbone.mean, std=backbone.std)
    image = _as_evaluated(Image.fromarray(getattr(data, photo)()), IMAGENET_SIDE[type(backbone)])

    scores = head(backbone(normalize(image))[-1])

    assert scores.argmax().item() in classes


# --- ResNet-50


def test_resnet50_dilates_whole_stages() -> None:
    stages = ResNet50().stages

    convs = [[block.conv2 for block in stage] for stage in stages]

    assert [{conv.dilation[0] for conv in stage} for stage in convs] == [{1}, {1}, {2}, {4}]
    assert all(conv.padding == conv.dilation for stage in convs for conv in stage)
    assert [stage[0].stride[0] for stage in convs] == [1, 2, 2, 1]


def test_resnet50_without_dilation_is_torchvisions() -> None:
    """Up to the second stage nothing differs."""
    torch.manual_seed(0)
    whole = resnet50(weights=None).eval()
    backbone = ResNet50().eval()
    load_classifier(backbone, whole.state_dict())
    images = _images(1, 3, 64, 64)

    found = backbone(images)

    wanted = [whole.maxpool(whole.relu(whole.bn1(whole.conv1(images))))]
    for stage in (whole.layer1, whole.layer2):
        wanted.append(stage(wanted[-1]))
    for x, y in zip(found[:3], wanted, strict=True):
        assert torch.equal(x, y)


def test_vgg16_levels_end_before_poolings() -> None:
    torch.manual_seed(0)
    # The classifier is left as it falls; what counts are the features.
    whole = vgg16(weights=None, init_weights=False).eval()
    backbone = VGG16().eval()
    load_classifier(backbone, whole.state_dict())
    images = _images(1, 3, 32, 32)

    found = backbone(images)

    # The last layer before each pooling but the first, in torchvision's numbering.
    ends = (9, 16, 23, 30)
    for x, end in zip(found, ends, strict=True):
        assert torch.equal(x, whole.features[:end](images))


# --- weights


def test_weights_are_taken_by_name() -> None:
    """Old files of torchvision order them otherwise, and count no batches."""
    torch.manual_seed(0)
    whole = resnet50(weights=None)
    nn.init.uniform_(whole.bn1.running_mean)
    state = {k: v for k, v in whole.state_dict().items() if "num_batches_tracked" not in k}
    old = dict(sorted(state.items(), key=lambda item: item[0][::-1]))

    backbone = ResNet50()
    load_classifier(backbone, old)

    assert torch.equal(backbone.stem[1].running_mean, whole.bn1.running_mean)
    assert torch.equal(backbone.stages[3][2].bn3.weight, whole.layer4[2].bn3.weight)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ModelError, match=r"269 tensors .* \(bias, bn1\.bias, bn1\.running_mean\)"):
        load_classifier(ResNet50(), nn.Linear(1, 1).state_dict())
    state = resnet50().state_dict() | {"fc.weight": torch.zeros(10, 2048)}
    with pytest.raises(ModelError, match=r"1 tensors .* \(fc\.weight\)"):
        load_classifier(ResNet50(), state)


def test_load_in_order_names_what_does_not_fit() -> None:
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tensors = list(layers.state_dict().values())

    assert load_in_order(layers, [*tensors, tensors[0]])[0] is tensors[0]
    with pytest.raises(ModelError, match=r"1\.weight needs .*\(1, 3\), nothing is left"):
        load_in_order(layers, tensors[:2])
    with pytest.raises(ModelError, match=r"0\.weight needs .*\(3, 2\), found \(3,\)"):
        load_in_order(layers, tensors[1:])


@pytest.mark.parametrize("backbone", [EfficientNetLite0, ResNet50, VGG16])
def test_strides_divide_each_other(backbone: type[Backbone]) -> None:
    assert all(coarse % fine == 0 for fine, coarse in pairwise(backbone.strides))
