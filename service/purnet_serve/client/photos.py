"""A photo in any form, as the bytes that are sent."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from purnet_serve.client.errors import PhotoError

if TYPE_CHECKING:
    from PIL import Image

Photo: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image"
"""A path, the bytes of an image file, a file opened in binary mode, or a Pillow image."""


def read_photo(photo: Photo) -> bytes:
    """The bytes of an encoded image; a Pillow image becomes a PNG, upright, without loss.

    Raises `PhotoError` for a file that cannot be read, and `TypeError` for another type.
    """
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, str | os.PathLike):
        try:
            return Path(photo).read_bytes()
        except OSError as error:
            detail = f"{os.fspath(photo)} cannot be read: {error.strerror or error}"
            raise PhotoError(detail, code="unreadable") from error
    from PIL import Image  # a client that sends files does without

    if isinstance(photo, Image.Image):
        return _encoded(photo)
    if hasattr(photo, "read"):
        data = photo.read()
        if isinstance(data, bytes):
            return data
        raise TypeError("the file of a photo must be opened in binary mode")
    raise TypeError(f"a photo is a path, bytes, a binary file or a Pillow image, not {photo!r:.60}")


def _encoded(image: Image.Image) -> bytes:
    from purnet.imaging import apply_orientation, orientation, to_rgba

    out = BytesIO()
    try:
        # Without EXIF: it would be turned a second time.
        apply_orientation(to_rgba(image), orientation(image)).save(
            out, "PNG", compress_level=1, exif=b""
        )
    except (OSError, ValueError) as error:
        raise PhotoError(f"the image cannot be encoded: {error}", code="unreadable") from error
    return out.getvalue()
