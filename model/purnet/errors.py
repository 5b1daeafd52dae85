"""What can go wrong around the model, as one tree.

ModelError
├── CheckpointError   a file that is not a checkpoint we can load, and why
├── DeviceError       a device that was asked for and is not there
├── ImageError        an image that cannot be read
├── NotFiniteError    a network whose output for an image is NaN or infinite
├── OutOfMemoryError  a batch that does not fit the device
├── DatasetError      a folder without pairs, or in an unknown layout
├── EvaluationError   maps that cannot be scored against their truths
├── TrainingError     a run that cannot go on (non-finite loss, wrong resume file)
└── WriteError        a file or folder that cannot be written
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of the tree; its text is one sentence for the person who typed the command."""


class CheckpointError(ModelError):
    """The file is missing, damaged, of another kind, or does not fit the network."""


class DeviceError(ModelError):
    """The device that was asked for is not available."""


class ImageError(ModelError, ValueError):
    """The image is missing, broken, or of a kind that is not read.

    `limit` is the bound that its file exceeds, where there is one.
    """

    def __init__(self, text: str, *, limit: int | None = None) -> None:
        super().__init__(text)
        self.limit = limit


class NotFiniteError(ModelError):
    """The network's output for an image holds a NaN or an infinity."""


class OutOfMemoryError(ModelError):
    """The device has no room for this batch; a smaller one may fit."""


class DatasetError(ModelError):
    """The folder holds no pairs of image and mask in a layout we know."""


class EvaluationError(ModelError):
    """Maps cannot be scored: none has a truth, or their sizes differ."""


class TrainingError(ModelError):
    """Training cannot go on."""


class WriteError(ModelError):
    """A file or folder cannot be written."""
