"""The photo of a request as it arrives: a raw body, a part of a multipart form, or from a URL.

A form is parsed as a stream into memory that admission has already counted: nothing is written to
disk, and an unknown part is refused at its header instead of being stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container
from dataclasses import dataclass, field

import multipart
from starlette.types import Message, Receive

from purnet_serve.errors import (
    EmptyBodyError,
    MalformedBodyError,
    MissingImageError,
    ParameterError,
)
from purnet_serve.http.admission import body_too_large
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.parameters import MaskOptions, shorten
from purnet_serve.http.request import ClientGoneError, RequestContext

IMAGE_FIELDS = ("image", "file", "image_file")
MAX_PARTS = 8  # more than an image and every parameter
MAX_PART_HEADER_BYTES = 4096
MAX_PART_HEADERS = 64
MAX_FIELD_BYTES = 64


@dataclass(frozen=True, slots=True)
class FormFields:
    """What a form of a route may hold."""

    images: tuple[str, ...] = IMAGE_FIELDS
    """Names of the field with the photo."""
    others: Container[str] = field(default_factory=lambda: MaskOptions.model_fields)
    base64: str | None = None
    """Name of a field with the photo in base64; only the limit of the body bounds it."""
    image_required: bool = True
    max_parts: int = MAX_PARTS
    max_field_bytes: int = MAX_FIELD_BYTES


MASK_FORM = FormFields()


@dataclass(slots=True)
class UploadStream:
    """The body of an admitted request: counted, and its client watched once it is complete."""

    receive: Receive
    context: RequestContext
    max_bytes: int
    _watcher: asyncio.Task[None] | None = None

    async def next(self) -> Message:
        """The next part of the body, as ASGI's `receive` gives it.

        Raises `BodyTooLargeError`, `MalformedBodyError` or `ClientGoneError`.
        """
        if self._watcher is not None:
            await asyncio.wait({self._watcher})
            return {"type": "http.disconnect"}
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self.context.body_bytes += len(message.get("body", b""))
        if self.context.body_bytes > self.max_bytes:
            raise body_too_large(self.max_bytes, self.context.body_bytes)
        if self.context.body_bytes > self.context.upload_bytes:
            raise MalformedBodyError("The body is longer than its Content-Length.")
        if not message.get("more_body", False):
            self._watcher = asyncio.create_task(self._watch())
        return message

    def close(self) -> None:
        """Stop watching the client."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        """Abort the request when its client closes the connection before it was answered."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self.context.complete:
            self.context.abort(ClientGoneError())


@dataclass(slots=True)
class Upload:
    """An encoded image as sent, and the form fields beside it in order."""

    image: bytes
    fields: tuple[tuple[str, str], ...] = ()
    base64: bytearray = field(default_factory=bytearray)
    """The image in base64, where it was sent like that."""

    def take(self) -> bytes:
        """The image, which is kept here no longer: it is freed as soon as it was decoded."""
        image, self.image = self.image, b""
        return image


async def read_upload(
    chunks: AsyncIterator[bytes], content_type: str, fields: FormFields = MASK_FORM
) -> Upload:
    """Take the image out of a body; b"" where the form needs none and has none.

    Raises `EmptyBodyError`, `MalformedBodyError`, `MissingImageError` or `ParameterError`, as soon
    as the bytes received so far allow, and whatever `chunks` raises.
    """
    kind, options = multipart.parse_options_header(content_type)
    if kind != "multipart/form-data":
        image = b"".join([chunk async for chunk in chunks])
        if not image:
            raise EmptyBodyError("The body is empty; send an image as body or as field `image`.")
        return Upload(image)
    form = _Form(fields)
    try:
        parser = multipart.PushMultipartParser(
            options.get("boundary", "").encode("latin-1"),
            max_header_size=MAX_PART_HEADER_BYTES,
            max_header_count=MAX_PART_HEADERS,
            header_charset="latin-1",  # decodes any byte; file names need not be UTF-8
        )
        async for chunk in chunks:
            if chunk:  # the parser takes an empty one for the end
                for event in parser.parse(chunk):
                    form.add(event)
        parser.close()
    except multipart.ParserLimitReached as error:
        detail = "A part of the form has too long a header."
        raise MalformedBodyError(detail, limit=MAX_PART_HEADER_BYTES) from error
    except multipart.MultipartError as error:
        detail = f"The body is not the form its Content-Type announces: {error}."
        raise MalformedBodyError(detail) from error
    return form.upload()


async def receive_from_url(service: ServiceContext, context: RequestContext, url: str) -> Upload:
    """Fetch a photo for an admitted request whose own body has arrived.

    Until its size is known, it counts as the largest upload. Raises `TooManyBytesError`, and what
    `Fetcher.fetch` raises.
    """
    service.fetcher.check_on()
    service.admission.reserve(context, service.settings.max_body_bytes)
    return Upload(await service.fetcher.fetch(url, context.deadline))


class _Form:
    """Collects the parts of a form from the parser's events."""

    def __init__(self, fields: FormFields) -> None:
        self._allowed = fields
        self._parts = 0
        self._image: list[bytes] | None = None
        self._fields: list[tuple[str, str]] = []
        self._base64 = bytearray()
        self._name = ""
        self._text = bytearray()
        self._take: Callable[[bytes], None] = self._text.extend

    def add(self, event: multipart.MultipartSegment | bytes | None) -> None:
        """Take the header of a part, a piece of its content, or None for its end."""
        if isinstance(event, multipart.MultipartSegment):
            self._begin_part(event)
        elif event is not None:
            self._take(event)
            if len(self._text) > self._allowed.max_field_bytes:
                raise ParameterError(self._name, f"The form field {self._name!r} is too long.")
        elif self._name not in (*self._allowed.images, self._allowed.base64):
            self._fields.append((self._name, self._text.decode("utf-8", "replace")))

    def upload(self) -> Upload:
        """What the form held, once its last byte was parsed."""
        name = self._allowed.images[0]
        if self._image is None and self._allowed.image_required:
            raise MissingImageError(f"The form has no field `{name}`.")
        image = b"".join(self._image or ())
        if self._image is not None and not image:
            raise EmptyBodyError(f"The field `{name}` is empty.")
        return Upload(image, tuple(self._fields), self._base64)

    def _begin_part(self, part: multipart.MultipartSegment) -> None:
        self._parts += 1
        if self._parts > self._allowed.max_parts:
            detail = "The form has too many parts."
            raise MalformedBodyError(detail, limit=self._allowed.max_parts, actual=self._parts)
        if sum(len(name) + len(value) for name, value in part.headerlist) > MAX_PART_HEADER_BYTES:
            raise multipart.ParserLimitReached
        self._name = name = (part.name or "").encode("latin-1").decode("utf-8", "replace")
        self._text = bytearray()
        self._take = self._text.extend
        if not name:
            raise MalformedBodyError("A part of the form has no name.")
        if name in self._allowed.images:
            if self._image is not None:
                raise MissingImageError("The form has more than one image; send one at a time.")
            self._image = []
            self._take = self._image.append
        elif name == self._allowed.base64:
            if self._base64:
                raise ParameterError(name, f"The parameter {name!r} is given more than once.")
            self._take = self._base64.extend
        elif name not in self._allowed.others:
            name = shorten(name)
            image = self._allowed.images[0]
            detail = f"There is no form field {name!r}; send the image as `{image}`."
            raise ParameterError(name, detail)
