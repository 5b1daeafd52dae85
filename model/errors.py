"""What can go wrong around the model, as one tree.

ModelError
├── CheckpointError   a file that is not a checkpoint we can load, and why
├── DeviceError       a device that was demanded and is not there
├── DatasetError      a folder without pairs, or a layout nobody knows
└── TrainingError     a run that cannot go on (non-finite loss, wrong resume file)
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of the tree; its text is one sentence for the person who typed the command."""


class CheckpointError(ModelError):
    """The file is missing, truncated, foreign or does not fit the network."""


class DeviceError(ModelError):
    """The device that was asked for is not available."""


class DatasetError(ModelError):
    """The folder holds no pairs of image and mask in a layout we know."""


class TrainingError(ModelError):
    """Training cannot go on."""
