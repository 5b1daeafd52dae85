"""Where a network runs, by the name a person types."""

from __future__ import annotations

import torch

from purnet.errors import DeviceError


def resolve(name: str) -> torch.device:
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
