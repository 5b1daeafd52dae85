"""PurNet, salient object detection: the mask of what stands out in a photo.

    import purnet

    predictor = purnet.load()
    mask = predictor.predict("photo.jpg")  # (H, W) uint8, 255 where the object is

Importing it loads no engine, and NumPy and Pillow only when `load` or `Predictor` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from purnet.errors import (
    CheckpointError,
    DeviceError,
    ImageError,
    ModelError,
    NotFiniteError,
    OutOfMemoryError,
)

if TYPE_CHECKING:
    from purnet.inference.factory import load
    from purnet.inference.predictor import Predictor

    __version__: str

__all__ = [
    "CheckpointError",
    "DeviceError",
    "ImageError",
    "ModelError",
    "NotFiniteError",
    "OutOfMemoryError",
    "Predictor",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        from purnet.inference.factory import load

        return load
    if name == "Predictor":
        from purnet.inference.predictor import Predictor

        return Predictor
    if name == "__version__":
        from importlib.metadata import version

        return version("purnet-serve")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
