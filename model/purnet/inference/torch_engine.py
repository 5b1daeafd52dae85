"""PurNet run by PyTorch, on the CPU (`EagerEngine`); `engines.cuda` adds what a GPU needs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from purnet.inference.fuse import fuse
from purnet.inference.predictor import Maps, OutOfMemoryError, UInt8Array
from purnet.network.purnet import PurNet


def to_images(pixels: UInt8Array, device: torch.device) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) float32 in [0, 1], channels last in memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(255)


def to_uint8(saliency: Tensor) -> Tensor:
    """Saliency in [0, 1] -> grey levels, truncated as the released code does: 0.999 -> 254."""
    return (saliency * 255).to(torch.uint8)


def to_masks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Saliency logits (N, 1, S, S) -> masks (N, S, S) uint8, finite (N,) bool.

    An image whose logits are not all finite gets 0.
    """
    finite = logits.isfinite().flatten(1).all(dim=1)
    saliency = torch.where(finite.view(-1, 1, 1, 1), logits, -torch.inf).sigmoid()
    return to_uint8(saliency).squeeze(1), finite


def to_maps(logits: Tensor) -> Maps:
    """Saliency logits (N, 1, S, S) -> what an engine answers."""
    masks, finite = to_masks(logits)
    grey: NDArray[np.uint8] = masks.cpu().numpy()
    return Maps(masks=grey, finite=finite.cpu().numpy())


@torch.inference_mode()
def reference_maps(network: PurNet, pixels: UInt8Array) -> Maps:
    """What every engine is held to: eager float32 on the CPU, nothing fused, plain layout."""
    return to_maps(network.predict(to_images(pixels, torch.device("cpu")).contiguous()))


class EagerEngine:
    """Eager float32 on the CPU, normalisation fused, channels last."""

    name = "eager"
    device = "cpu"

    def __init__(self, network: PurNet) -> None:
        fuse(network)
        self._network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: UInt8Array) -> Maps:
        """See `Engine`."""
        try:
            return to_maps(self._network.predict(to_images(pixels, torch.device("cpu"))))
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            # torch's CPU allocator has no exception class of its own.
            if "allocate memory" in str(error):
                raise OutOfMemoryError(str(error)) from error
            raise
