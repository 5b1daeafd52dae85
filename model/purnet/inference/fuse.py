"""Fold batch normalisation into the convolution before it: one pass over memory less each."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck


def fuse(network: nn.Module) -> None:
    """Fuse, in place, every convolution with the normalisation that follows it.

    Only where the order of modules is the order of computation: in `nn.Sequential` and in
    torchvision's `Bottleneck`. The network must be in evaluation mode.
    """
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential | Bottleneck):
            continue
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            # Not a subclass: timm's also hold an activation, which fusing would drop.
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
