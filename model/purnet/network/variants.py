"""Named networks as data, and `build(name)`.

| name | backbone | width | blocks | promotion | upsampling | for |
|---|---|---|---|---|---|---|
| `purnet-lite0` | EfficientNet-Lite0 | 64 | separable | gates | bilinear | softer edges |
| `purnet-lite0-s2` | EfficientNet-Lite0 | 64 | separable | gates | bilinear | no global context |
| `purnet-lite0-gc` | EfficientNet-Lite0 | 64 | separable | gates | bilinear | the default |
| `purnet-lite2` | EfficientNet-Lite2 | 64 | separable | gates | bilinear | larger, untrained |
| `purnet-resnet50` | ResNet-50, dilated | 128 | dense | softmax | transposed | released weights |
| `purnet-vgg16` | VGG-16 | 128 | dense | softmax | transposed | the paper's other backbone |
| `timm/<name>` | any timm features | 64 | separable | gates | bilinear | your own backbone |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from purnet.errors import ModelError
from purnet.network.backbones import (
    VGG16,
    Backbone,
    EfficientNetLite0,
    EfficientNetLite2,
    ResNet50,
)
from purnet.network.blocks import (
    BilinearUpsample,
    Head,
    Pyramid,
    conv_block,
    separable_block,
    transposed_upsample,
)
from purnet.network.branches import (
    EdgeRefinement,
    GatePromotion,
    GlobalContext,
    PromotionBranch,
    PurificationBranch,
    RectificationBranch,
    SoftmaxPromotion,
)
from purnet.network.purnet import AttentionSubnetwork, PurificationSubnetwork, PurNet
from purnet.network.timm_backbone import TimmBackbone

DEFAULT_VARIANT = "purnet-lite0-gc"


@dataclass(frozen=True, slots=True)
class Variant:
    """A network's parts, by name."""

    name: str
    backbone: Callable[[], Backbone]
    width: int
    """Channels of every pyramid."""
    style: Literal["released", "lite"]
    """`released`: dense blocks, softmax promotion, transposed convolutions, maps at image size.
    `lite`: separable blocks, gated promotion, bilinear upsampling, maps at level size."""
    input_size: int = 320
    """Side of the square photos are resized to for prediction, in pixels."""
    global_context: bool = False
    """Whether the coarsest features pass through self-attention before the pyramids."""
    refine_edges: bool = False
    """Whether a last step at stride 2, from the backbone's stem, corrects the finest map."""

    @property
    def strides(self) -> tuple[int, ...] | None:
        """Of each level, finest first; None where only the built backbone knows them (timm)."""
        return getattr(self.backbone, "strides", None)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("purnet-lite0", EfficientNetLite0, width=64, style="lite"),
        Variant("purnet-lite0-s2", EfficientNetLite0, width=64, style="lite", refine_edges=True),
        Variant(
            "purnet-lite0-gc",
            EfficientNetLite0,
            width=64,
            style="lite",
            refine_edges=True,
            global_context=True,
        ),
        Variant(
            "purnet-lite2",
            EfficientNetLite2,
            width=64,
            style="lite",
            refine_edges=True,
            global_context=True,
        ),
        Variant("purnet-resnet50", ResNet50, width=128, style="released"),
        Variant("purnet-vgg16", VGG16, width=128, style="released"),
    )
}


def get(name: str) -> Variant:
    """Return a variant by name, `timm/<name>` included. Raises `ModelError` for an unknown one."""
    if name in VARIANTS:
        return VARIANTS[name]
    prefix, _, timm_name = name.partition("/")
    if prefix == "timm" and timm_name:
        return Variant(name, partial(TimmBackbone, timm_name), width=64, style="lite")
    known = ", ".join([*VARIANTS, "timm/<name>"])
    raise ModelError(f"unknown variant {name!r}; known: {known}")


def build(name: str = DEFAULT_VARIANT, *, attention: bool = True) -> PurNet:
    """Build a network with random weights, in training mode.

    `attention=False` leaves promotion and rectification out, as training stage 1 does.
    Raises `ModelError` for an unknown name.
    """
    variant = get(name)
    backbone = variant.backbone()
    levels = range(len(backbone.channels))
    parts = _PARTS[variant.style](variant.width)

    def pyramid() -> Pyramid:
        return Pyramid(
            channels=backbone.channels,
            strides=backbone.strides,
            width=variant.width,
            block=parts.block,
            upsample=parts.upsample,
        )

    def head(level: int) -> Head:
        return parts.head(backbone.strides[level])

    edges = None
    if variant.refine_edges:
        if backbone.stem_channels is None:
            raise ModelError(f"{name}: its backbone gives no features at stride 2")
        edges = EdgeRefinement(stem_channels=backbone.stem_channels, width=variant.width)
    context = GlobalContext(backbone.channels[-1]) if variant.global_context else None
    purification = PurificationSubnetwork(
        pyramid=pyramid(),
        edges=edges,
        branches=[
            PurificationBranch(
                refine=parts.block(variant.width, variant.width, 3) if attention else None,
                head=head(level),
            )
            for level in levels
        ],
    )
    if not attention:
        return PurNet(backbone=backbone, purification=purification, context=context)
    promotion = AttentionSubnetwork(
        pyramid=pyramid(),
        branches=[
            PromotionBranch(attention=parts.promotion(), head=head(level)) for level in levels
        ],
    )
    rectification = AttentionSubnetwork(
        pyramid=pyramid(),
        branches=[
            RectificationBranch(
                object_features=parts.features(),
                error_features=parts.features(),
                object_head=head(level),
                error_head=head(level),
            )
            for level in levels
        ],
    )
    return PurNet(
        backbone=backbone,
        purification=purification,
        promotion=promotion,
        rectification=rectification,
        context=context,
    )


@dataclass(frozen=True, slots=True)
class _ReleasedParts:
    """The parts of the released network."""

    width: int

    def block(self, cin: int, cout: int, kernel: int) -> nn.Module:
        return conv_block(cin, cout, kernel)

    def upsample(self, channels: int, factor: int) -> nn.Module:
        return transposed_upsample(channels, factor)

    def promotion(self) -> nn.Module:
        return SoftmaxPromotion()

    def features(self) -> nn.Module:
        return nn.Sequential(*(conv_block(self.width, self.width, kernel) for kernel in (3, 3, 1)))

    def head(self, stride: int) -> Head:
        blocks = [conv_block(self.width, self.width, kernel) for kernel in (3, 1)]
        return Head(width=self.width, blocks=blocks, upsample=transposed_upsample(1, stride))


@dataclass(frozen=True, slots=True)
class _LiteParts:
    """Narrow, depthwise-separable parts whose heads stay at level size."""

    width: int

    def block(self, cin: int, cout: int, kernel: int) -> nn.Module:
        return separable_block(cin, cout, kernel)

    def upsample(self, _channels: int, factor: int) -> nn.Module:
        return BilinearUpsample(factor)

    def promotion(self) -> nn.Module:
        return GatePromotion(self.width)

    def features(self) -> nn.Module:
        return separable_block(self.width, self.width, 3)

    def head(self, _stride: int) -> Head:
        return Head(
            width=self.width,
            blocks=[separable_block(self.width, self.width, 3)],
            upsample=nn.Identity(),
        )


_PARTS: dict[str, Callable[[int], _ReleasedParts | _LiteParts]] = {
    "released": _ReleasedParts,
    "lite": _LiteParts,
}
