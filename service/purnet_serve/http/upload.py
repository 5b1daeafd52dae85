"""The body of `POST /v1/mask` as it arrives: a raw image, or a multipart form around one.

Parsed as a stream into memory that the guard has already counted: nothing is spooled to a disk,
and a part that no one asked for is refused at its header instead of being stored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from purnet_serve.errors import (
    EmptyBodyError,
    MalformedBodyError,
    MissingImageError,
    ParameterError,
)
from purnet_serve.http.options import PARAMETERS, shown

IMAGE_FIELDS = ("image", "file", "image_file")
MAX_PARTS = 8  # an image and every parameter, with room to spare
MAX_PART_HEADER_BYTES = 4096
MAX_FIELD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Upload:
    """An encoded image as sent, and the form fields beside it in order."""

    image: bytes
    fields: tuple[tuple[str, str], ...]


async def read_upload(chunks: AsyncIterator[bytes], content_type: str) -> Upload:
    """Take the image out of a body.

    Raises `EmptyBodyError`, `MalformedBodyError`, `MissingImageError` or `ParameterError`, as soon
    as the bytes seen allow, and whatever `chunks` raises.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        image = b"".join([chunk async for chunk in chunks])
        if not image:
            raise EmptyBodyError("The body is empty; send an image as body or as field `image`.")
        return Upload(image, ())
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedBodyError("The multipart Content-Type names no boundary.")
    form = _Form(boundary)
    async for chunk in chunks:
        form.feed(chunk)
    return form.upload()


class _Form:
    """Collects parts from the parser's callbacks."""

    def __init__(self, boundary: bytes) -> None:
        self._image: list[bytes] | None = None
        self._fields: list[tuple[str, str]] = []
        self._parts = 0
        self._complete = False
        self._header_bytes = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name: str | None = None
        self._value: list[bytes] = []
        self._value_bytes = 0
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_begin": self._on_header_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedBodyError("The multipart boundary is not a valid one.") from error

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedBodyError("The body is not the form its Content-Type says.") from error

    def upload(self) -> Upload:
        """What the form held, once every byte was fed."""
        if not self._complete:
            raise MalformedBodyError("The multipart form ends before its last boundary.")
        if self._image is None:
            raise MissingImageError("The form has no field `image`.")
        image = b"".join(self._image)
        if not image:
            raise EmptyBodyError("The field `image` is empty.")
        return Upload(image, tuple(self._fields))

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MalformedBodyError(
                "The form has too many parts.", limit=MAX_PARTS, actual=self._parts
            )
        self._header_bytes = 0
        self._disposition = b""
        self._name = None
        self._value = []
        self._value_bytes = 0

    def _on_header_begin(self) -> None:
        self._header = (bytearray(), bytearray())

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._grow_header(0, data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._grow_header(1, data[start:end])

    def _grow_header(self, part: int, piece: bytes) -> None:
        self._header_bytes += len(piece)
        if self._header_bytes > MAX_PART_HEADER_BYTES:
            raise MalformedBodyError(
                "A part of the form has too long a header.", limit=MAX_PART_HEADER_BYTES
            )
        self._header[part].extend(piece)

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        raw = options.get(b"name")
        if raw is None:
            raise MalformedBodyError("A part of the form has no name.")
        name = raw.decode("utf-8", "replace")
        if name in IMAGE_FIELDS:
            if self._image is not None:
                raise MissingImageError("The form has more than one image; send one at a time.")
            self._image = self._value
        elif name not in PARAMETERS:
            raise ParameterError(
                shown(name), f"There is no form field {shown(name)!r}; send the image as `image`."
            )
        self._name = name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._value_bytes += end - start
        if self._name not in IMAGE_FIELDS and self._value_bytes > MAX_FIELD_BYTES:
            name = self._name or ""
            raise ParameterError(name, f"The form field {name!r} is too long.")
        self._value.append(data[start:end])

    def _on_part_end(self) -> None:
        if self._name is not None and self._name not in IMAGE_FIELDS:
            value = b"".join(self._value).decode("utf-8", "replace")
            self._fields.append((self._name, value))

    def _on_end(self) -> None:
        self._complete = True
