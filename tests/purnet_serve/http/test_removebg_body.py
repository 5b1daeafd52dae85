"""Bodies of text: what is in them, and the memory they take whatever is in them."""

from __future__ import annotations

import base64
import json
import tracemalloc
from urllib.parse import urlencode

import pytest

from purnet_serve.errors import MalformedBodyError, ParameterError, ServiceError
from purnet_serve.http.removebg_body import (
    MAX_OTHER_BYTES,
    PARSED_BYTES,
    URLENCODED,
    decoded_photo,
    fields_of,
)
from purnet_serve.settings import MIB

PHOTO = bytes(range(256)) * 3 + b"a"
B64 = base64.b64encode(PHOTO).decode()
LINES = base64.encodebytes(PHOTO).decode()
DATA_URL = f"data:image/jpeg;base64,{B64}"
JSON = "application/json"


def read(body: bytes, kind: str) -> tuple[dict[str, str], bytes]:
    fields, text = fields_of(bytearray(body), kind)
    return {name: value for name, value in fields if value}, decoded_photo(text)


def escaped(text: str, signs: str) -> str:
    """JSON text as .NET writes it."""
    for sign in signs:
        text = text.replace(sign, f"\\u{ord(sign):04X}")
    return text


@pytest.mark.parametrize("value", [B64, LINES, LINES.replace("\n", "\r\n"), DATA_URL])
def test_base64_as_programs_write_it(value: str) -> None:
    fields = {"size": "auto", "image_file_b64": value, "type": "\u00fc&="}
    there = {"size": "auto", "type": "\u00fc&="}
    written = json.dumps(fields)
    form = urlencode(fields)
    for text in (written, written.replace("/", "\\/"), escaped(written, "+")):
        assert read(text.encode(), JSON) == (there, PHOTO)
    lower = form.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
    for text in (form, lower):
        assert read(text.encode(), URLENCODED) == (there, PHOTO)
    alone = f'{{ "image_file_b64" :\t{json.dumps(value)}}}'
    assert read(alone.encode(), JSON) == ({}, PHOTO)
    assert read(b"size=auto", URLENCODED) == ({"size": "auto"}, b"")


@pytest.mark.parametrize(
    "text",
    [
        '{"image_file_b64": "QUJD", "image_file_b64": "QUJD"}', '{"image_file_b64": 5}',
        '{"image\\u005ffile_b64": "QUJD"}', '{"image_file_b64": "\\u0041BCD"}',
        '{"image_file_b64": "QUJD\\\\/"}', '{"image_file_b64": "QUJD\\""}',
        '{"image_file_b64": "QUJD\U0001f600"}', '{"a": {"image_file_b64": "QUJD"}}',
    ],
)  # fmt: skip
def test_json_whose_base64_is_refused(text: str) -> None:
    with pytest.raises((ParameterError, MalformedBodyError)):
        read(text.encode(), JSON)


@pytest.mark.parametrize(
    "text", ["image_file_b64=%41BCD", "image_file_b64=QUJD&image_file_b64=QUJD",
             "image_file_b64=QUJD\u00fc", "image%5Ffile_b64=QUJD", "image_file_b64=QUJD%252B"]
)  # fmt: skip
def test_forms_whose_base64_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        read(text.encode(), URLENCODED)


def test_the_name_of_the_photo_may_be_a_value() -> None:
    text = '{"type": "image_file_b64", "size": "\\"image_file_b64\\": \\"QUJD\\""}'
    there = {"type": "image_file_b64", "size": '"image_file_b64": "QUJD"'}
    assert read(text.encode(), JSON) == (there, b"")


def test_what_is_beside_the_photo_is_bounded() -> None:
    bodies = {JSON: b'{"type": "%b"}', URLENCODED: b"type=%b"}
    for kind, body in bodies.items():
        free = MAX_OTHER_BYTES - len(body % b"")
        fields, _ = read(body % (b"a" * free), kind)
        assert len(fields["type"]) == free
        with pytest.raises(MalformedBodyError, match=str(MAX_OTHER_BYTES)):
            read(body % (b"a" * (free + 1)), kind)


@pytest.mark.parametrize(
    ("kind", "start", "unit", "end"),
    [
        (JSON, b'{"a": [', b"[],", b"[]]}"),
        (JSON, b'{"image_file_b64": [', b"[],", b"[]]}"),
        (JSON, b'{"image_file_b64": "', b"QUJD", b'\xf0\x9f\x98\x80"}'),
        (JSON, b'{"image_file_b64": "', rb"AB\/\u002b", b'"}'),
        (URLENCODED, b"image_file_b64=", b"%41", b""),
        (URLENCODED, b"image_file_b64=", b"%2B%2f%3DA", b""),
        (URLENCODED, b"image_file_b64=", b"QUJD", b""),
        (URLENCODED, b"", b"a=b&", b""),
    ],
)
def test_no_body_takes_more_memory_than_is_counted(
    kind: str, start: bytes, unit: bytes, end: bytes
) -> None:
    body = bytearray(start + unit * (4 * MIB // len(unit)) + end)
    size = len(body)
    tracemalloc.start()
    try:
        text = fields_of(body, kind)[1]
        del body
        decoded_photo(text)
    except ServiceError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The body itself was allocated before.
    assert peak <= (PARSED_BYTES - 1) * size + MIB
