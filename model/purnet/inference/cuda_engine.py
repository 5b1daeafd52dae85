"""PurNet run by PyTorch on one CUDA device."""

from __future__ import annotations

import torch

from purnet.inference.fuse import fuse
from purnet.inference.predictor import EngineOutput, OutOfMemoryError, UInt8Array
from purnet.inference.torch_engine import to_images, to_output
from purnet.network.purnet import PurNet


class CudaEngine:
    """Eager float32 on a GPU, convolutions too: PyTorch would run those in TF32 by default."""

    name = "cuda"

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
            told = str(error)
        # What the failed batch left behind would make the smaller one fail too. It can be given
        # back only now that the error, and with it the batch's tensors, is gone.
        torch.cuda.empty_cache()
        raise OutOfMemoryError(told)
