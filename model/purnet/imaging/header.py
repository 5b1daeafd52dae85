"""The header of an encoded image: format by its first bytes, size and orientation from its header.

Nothing is decoded and no file name or Content-Type is believed. What is not taken is named.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection

from purnet.imaging.formats import FORMATS, NAMES, Format, Header, UnknownFormatError, broken
from purnet.imaging.heif import brand_name, read_avif, read_heif
from purnet.imaging.jpeg import read_jpeg
from purnet.imaging.png import read_png
from purnet.imaging.simple_headers import read_bmp, read_gif, read_webp
from purnet.imaging.tiff import read_tiff

_READERS: dict[Format, Callable[[bytes], Header]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "AVIF": read_avif,
    "HEIF": read_heif,
    "GIF": read_gif,
    "BMP": read_bmp,
    "TIFF": read_tiff,
}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIU\x00", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"%PDF-", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"\x00\x00\x01\xb3", "an MPEG video"),
    (b"FLV\x01", "a Flash video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer"),
    (b"data:", "a data URL"),
    (b"http://", "a URL"),
    (b"https://", "a URL"),
)
_RIFF = {b"AVI ": "an AVI video", b"WAVE": "a WAV file"}
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\r\n]{16,}={0,2}\s*")
# Each alternative ends where the next begins, so that no text is tried in many ways.
_SVG = re.compile(
    rb"(?is)(?:<\?(?:(?!\?>).)*\?>\s*|<!--(?:(?!-->).)*-->\s*|<!doctype svg[^>]*>\s*)*+<svg\b"
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LOOKED_AT_BYTES = 1024


def read_header(data: bytes, formats: Collection[Format] = FORMATS) -> Header:
    """Format, size and orientation of an image in one of `formats`.

    Raises `UnknownFormatError` for anything else, naming what it is, `TooManyScansError`, or
    `ImageError` for a header that is broken, cut short or asks for unreasonable work.
    """
    image_format = format_of(data)
    if image_format is None or image_format not in formats:
        raise UnknownFormatError(
            f"it is {what_it_is(data)}; taken are {join_names(formats)} images"
        )
    header = _READERS[image_format](data)
    if not header.width or not header.height:
        raise broken(image_format, "its header gives a side of 0 pixels")
    return header


def join_names(formats: Collection[Format], word: str = "and") -> str:
    """Names of formats, as a sentence has them: `JPEG, PNG and WebP`."""
    *names, last = (NAMES[image_format] for image_format in FORMATS if image_format in formats)
    return f"{', '.join(names)} {word} {last}" if names else last


def format_of(data: bytes) -> Format | None:
    """The format that the first bytes announce; None for one that is not known here."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    # Two letters are little: a BMP also has four reserved bytes of 0 and a header of known length.
    if data[:2] == b"BM" and data[6:10] == bytes(4) and data[15:18] == bytes(3):
        return "BMP"
    if data[4:8] == b"ftyp":
        return {"an AVIF image": "AVIF", "a HEIC image": "HEIF"}.get(brand_name(data))  # type: ignore[return-value]
    return None


def what_it_is(data: bytes) -> str:
    """What these bytes are, for a person who sent the wrong ones: `a PDF`, `base64 text`."""
    if not data:
        return "empty"
    if (image_format := format_of(data)) not in (None, "HEIF"):
        name = NAMES[image_format]
        return f"an {name} image" if name == "AVIF" else f"a {name} image"
    if data[4:8] == b"ftyp":
        return brand_name(data)
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "a RIFF file")
    if re.match(rb"P[1-7]\s", data):
        return "a netpbm image"
    return _what_text(data[:_LOOKED_AT_BYTES].removeprefix(_BYTE_ORDER_MARK))


def _what_text(start: bytes) -> str:
    text = start.lstrip()
    if re.match(rb"(?i)<!doctype html|<html|<head|<body", text):
        return "an HTML page"
    if _SVG.match(text):
        return "an SVG drawing"
    if text.startswith(b"<"):
        return "XML"
    if re.match(rb"(?i)--\S.*\r?\ncontent-disposition:", text):
        return "a multipart form"
    if re.match(rb"[{\[]\s*[\"{\[\]}\d-]", text):
        return "JSON"
    if _is_base64(text):
        return "base64 text"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text"
    try:
        start[:-4].decode("utf-8")  # the cut may be within a letter
    except UnicodeDecodeError as error:
        if error.start < len(start) - 8:
            return "of no known kind"
    return "of no known kind" if b"\0" in start else "text"


def _is_base64(text: bytes) -> bool:
    text = text.strip(b"\"'")
    if not _BASE64.fullmatch(text):
        return False
    letters = b"".join(text.split()).translate(bytes.maketrans(b"-_", b"+/"))
    try:
        decoded = base64.b64decode(letters[: len(letters) // 4 * 4])
    except binascii.Error:
        return False
    return format_of(decoded) is not None or len(letters) >= 200
