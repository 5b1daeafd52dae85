"""Random numbers from torch's global generator, as torchvision's transforms draw theirs."""

from __future__ import annotations

import math

import torch


def uniform(low: float, high: float) -> float:
    """Evenly between two numbers."""
    return low + (high - low) * torch.rand(()).item()


def log_uniform(low: float, high: float) -> float:
    """Between two positive numbers, as likely to double the lower as to halve the higher."""
    return math.exp(uniform(math.log(low), math.log(high)))
