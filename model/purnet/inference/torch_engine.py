"""PurNet run by PyTorch: on the CPU (`EagerEngine`) or on one CUDA device (`CudaEngine`)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

from purnet.errors import DeviceError, OutOfMemoryError
from purnet.imaging import UInt8Array
from purnet.inference.engine import EngineOutput
from purnet.network.purnet import PurNet


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device that is there.

    `auto` is the first CUDA device where there is one, else the CPU. Raises `DeviceError` for a
    device that was named and is not there: never falls back to the CPU in silence.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is not a device: say auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise DeviceError(f"{name!r} is not supported: say auto, cpu, cuda or cuda:N")
    index = device.index or 0
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise DeviceError(f"{name} was asked for, but this machine has {count} CUDA devices")
    return torch.device("cuda", index)


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
    return to_uint8(saliency)[:, 0], finite


def to_output(logits: Tensor) -> EngineOutput:
    """Saliency logits (N, 1, S, S) -> what an engine answers."""
    masks, finite = to_masks(logits)
    return EngineOutput(masks=masks.cpu().numpy(), finite=finite.cpu().numpy())


@torch.inference_mode()
def reference_output(network: PurNet, pixels: UInt8Array) -> EngineOutput:
    """The reference for every engine: eager float32 on the CPU, nothing fused, plain layout."""
    return to_output(network.predict(to_images(pixels, torch.device("cpu")).contiguous()))


def fuse(network: nn.Module) -> None:
    """Fold, in place, every batch normalisation into the convolution before it.

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


class EagerEngine:
    """Eager float32 on the CPU, batch normalisation fused, channels last."""

    name = "eager"
    device = "cpu"
    streams = 1

    def __init__(self, network: PurNet) -> None:
        fuse(network)
        self._network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """See `Engine`."""
        try:
            return to_output(self._network.predict(to_images(pixels, torch.device("cpu"))))
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            # torch's CPU allocator has no exception class of its own.
            if "allocate memory" in str(error):
                raise OutOfMemoryError(str(error)) from error
            raise


class CudaEngine:
    """Eager float32 on a GPU, convolutions too: PyTorch would run those in TF32 by default."""

    name = "cuda"
    streams = 1

    def __init__(self, network: PurNet, device: torch.device) -> None:
        self.device = str(device)
        self._device = device
        fuse(network)
        self._network = network.to(device).to(memory_format=torch.channels_last)

    def memory_bytes(self) -> int:
        """What PyTorch holds of the device's memory, in bytes."""
        return torch.cuda.memory_reserved(self._device)

    @torch.inference_mode()
    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """See `Engine`."""
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return to_output(self._network.predict(to_images(pixels, self._device)))
        except torch.cuda.OutOfMemoryError as error:
            message = str(error)
        # What the failed batch left behind would make the smaller one fail too. It can be given
        # back only now that the error, and with it the batch's tensors, is gone.
        torch.cuda.empty_cache()
        raise OutOfMemoryError(message)
