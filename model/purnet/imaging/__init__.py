"""Images in and out of the model, without torch: file -> RGB -> pixels; mask -> image.

Everything a person would notice is decided here, once, for the command line and the service. An
image is read as a browser displays it:

- *Orientation* comes from EXIF: of JPEG (an MPO is its first picture), PNG (the eXIf chunk, or the
  text `Raw profile type exif` or `APP1`) and WebP; from the file's own rotation and mirror of AVIF
  and HEIC; from the tag of TIFF. XMP is not looked at: it may describe another picture.
- *An animation* is its first frame; of an animated PNG that may be another one than the default
  image.
- *Transparency* is composited on white. What lies under transparent pixels is arbitrary, often
  black; white is the page people look at such pictures on, and dark logos stay visible on it.
  Cutouts keep it.
- *16-bit* samples are scaled to 8 bits; Pillow's own conversion saturates them.
- *CMYK* JPEG files hold inverted inks, with or without Adobe's marker.
- *ICC profiles* are ignored (a profile shifts colours a little, never what is salient).
- *Metadata* is dropped before a decoder sees it, so that none can fail a picture.
- *A JPEG without its end marker* is taken if every block of its picture is there.
"""

from __future__ import annotations

from purnet.errors import ImageError
from purnet.imaging.decode import (
    UInt8Array,
    apply_orientation,
    as_displayed,
    decoding,
    displayed_size,
    on_white,
    open_image,
    orientation,
    stored_samples,
    to_rgba,
)
from purnet.imaging.formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    NAMES,
    QUARTER_TURNS,
    Format,
    Header,
    TooManyPixelsError,
    TooManyScansError,
    UnknownFormatError,
)
from purnet.imaging.header import join_names, read_header
from purnet.imaging.masks import (
    WEBP_MAX_SIDE,
    cutout,
    encode_png,
    encode_webp,
    resize_mask,
    to_pixels,
)
from purnet.imaging.pixels import DRAFT_FACTOR, PhotoPixels, read_pixels

__all__ = [
    "DRAFT_FACTOR",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "NAMES",
    "QUARTER_TURNS",
    "WEBP_MAX_SIDE",
    "Format",
    "Header",
    "ImageError",
    "PhotoPixels",
    "TooManyPixelsError",
    "TooManyScansError",
    "UInt8Array",
    "UnknownFormatError",
    "apply_orientation",
    "as_displayed",
    "cutout",
    "decoding",
    "displayed_size",
    "encode_png",
    "encode_webp",
    "join_names",
    "on_white",
    "open_image",
    "orientation",
    "read_header",
    "read_pixels",
    "resize_mask",
    "stored_samples",
    "to_pixels",
    "to_rgba",
]
