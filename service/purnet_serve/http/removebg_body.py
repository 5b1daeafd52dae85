"""The text bodies of remove.bg's API, JSON or urlencoded, with a photo in base64 that may be large.

A parser takes many times the size of what it reads: a list of JSON is 3 bytes of text and 60 of
memory. So the photo is cut out of the bytes, and what is left is bounded before it is parsed.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from purnet_serve.errors import MalformedBodyError, ParameterError
from purnet_serve.http.parameters import shorten

URLENCODED = "application/x-www-form-urlencoded"
TEXT_KINDS = ("application/json", URLENCODED)
BASE64_FIELD = "image_file_b64"
MAX_FIELDS = 32
MAX_OTHER_BYTES = 64 * 1024
"""Bytes of a text body beside the photo."""
PARSED_BYTES = 3
"""Bytes held for each of a body until its photo is decoded: the body, and two copies of base64."""

_JSON_START = re.compile(rb'(?<!\\)"image_file_b64"[ \t\r\n]*:[ \t\r\n]*"')
_FORM_START = re.compile(rb"(?:^|&)image_file_b64=")
_JSON_ESCAPES = {
    rb"\/": b"/", rb"\n": b"", rb"\r": b"", rb"\u002B": b"+", rb"\u002b": b"+",
    rb"\u002F": b"/", rb"\u002f": b"/", rb"\u003D": b"=", rb"\u003d": b"=",
}  # fmt: skip
"""What JSON libraries write in base64: PHP escapes slashes, .NET plus signs."""
_FORM_ESCAPES = {
    b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b" ",
    b"%3A": b":", b"%3B": b";", b"%2C": b",", b"%2b": b"+", b"%2f": b"/", b"%3d": b"=",
    b"%0a": b"", b"%0d": b"", b"%3a": b":", b"%3b": b";", b"%2c": b",",
}  # fmt: skip
"""The same in a form, and what begins a data URL."""


def fields_of(body: bytearray, kind: str) -> tuple[list[tuple[str, str]], bytearray]:
    """The fields of a body of one of `TEXT_KINDS`, and its photo in base64, empty without one.

    `body` is changed, so that it is not held beside its photo. Raises `MalformedBodyError` or
    `ParameterError`.
    """
    if kind == URLENCODED:
        rest = _cut_photo(body, _FORM_START, b"&")
        photo = _unescaped(body, b"%", _FORM_ESCAPES)
        fields = _form_fields(rest)
    else:
        rest = _cut_photo(body, _JSON_START, b'"')
        photo = _unescaped(body, b"\\", _JSON_ESCAPES)
        fields = _json_fields(rest)
    if any(name == BASE64_FIELD and value for name, value in fields):
        raise ParameterError(BASE64_FIELD, f"{BASE64_FIELD!r} must be base64, and given once.")
    return fields, photo


def decoded_photo(text: bytearray) -> bytes:
    """The bytes behind base64 with or without the start of a data URL, which is cut off `text`.

    Raises `ParameterError`.
    """
    if text.startswith(b"data:"):
        comma = text.find(b",")
        del text[: comma + 1 or len(text)]
    try:
        if not text.isascii():
            raise ValueError("not ASCII")
        # In a form a plus that was not escaped means a space.
        return binascii.a2b_base64(text.replace(b" ", b"+"))
    except ValueError:
        raise ParameterError(BASE64_FIELD, f"{BASE64_FIELD!r} must be base64.") from None


def _cut_photo(body: bytearray, before: re.Pattern[bytes], after: bytes) -> bytes:
    """Remove all but the base64 photo from `body`; return the removed text, with an empty photo."""
    start = end = 0
    if found := before.search(body, 0, MAX_OTHER_BYTES):
        start = found.end()
        end = body.find(after, start)
        end = len(body) if end < 0 else end
    if len(body) - (end - start) > MAX_OTHER_BYTES:
        detail = f"Beside {BASE64_FIELD}, a body has at most {MAX_OTHER_BYTES} bytes."
        raise MalformedBodyError(detail, limit=MAX_OTHER_BYTES)
    rest = bytes(body[:start] + body[end:])
    del body[end:], body[:start]
    return rest


def _unescaped(text: bytearray, mark: bytes, escapes: Mapping[bytes, bytes]) -> bytearray:
    for escape, plain in escapes.items():
        if mark not in text:
            return text
        text = text.replace(escape, plain)
    if mark in text:
        detail = f"{BASE64_FIELD!r} must be base64, with nothing escaped that need not be."
        raise ParameterError(BASE64_FIELD, detail)
    return text


def _form_fields(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise MalformedBodyError("The body is not a form.") from error


def _json_fields(text: bytes) -> list[tuple[str, str]]:
    try:
        members = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise MalformedBodyError("The body is not JSON.") from error
    if not text.lstrip().startswith(b"{") or len(members) > MAX_FIELDS:
        raise MalformedBodyError(f"The body must be an object of at most {MAX_FIELDS} members.")
    try:
        "".join(name for name, _ in members).encode()
    except UnicodeEncodeError as error:
        raise MalformedBodyError("A name in the body is half of a surrogate pair.") from error
    return [(name, _text(name, value)) for name, value in members if value is not None]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    name = shorten(name)
    raise ParameterError(name, f"{name!r} must be text, a number, true or false.")
