"""A network of a few thousand parameters, for tests that hold of any."""

from __future__ import annotations

from torch import Tensor, nn

from purnet.network.backbones import Backbone
from purnet.network.variants import Variant


def _halved(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
    )


class TinyBackbone(Backbone):
    """Five convolutions of stride 2."""

    channels = (8, 8, 8, 8)
    strides = (4, 8, 16, 32)
    stem_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = _halved(3, 8)
        self.stages = nn.ModuleList(_halved(8, 8) for _ in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.from_stem(self.stem(images))

    def from_stem(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


TINY = Variant("tiny", TinyBackbone, width=8, style="lite", input_size=96)
"""Not one of `VARIANTS`: a test that names it registers it."""
