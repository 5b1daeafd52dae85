from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from purnet_serve.errors import (
    EmptyBodyError,
    MalformedBodyError,
    MissingImageError,
    ParameterError,
    ServiceError,
)
from purnet_serve.http.upload import MAX_PARTS, Upload, read_upload

pytestmark = pytest.mark.anyio

IMAGE = bytes(range(256)) * 4 + b"\r\n--not-the-boundary\r\n"
FORM = "multipart/form-data; boundary=b"


async def read(body: bytes, content_type: str, step: int = 65536) -> Upload:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return await read_upload(chunks(), content_type)


def part(name: str | None, value: bytes, *headers: str) -> bytes:
    disposition = "form-data" if name is None else f'form-data; name="{name}"'
    lines = [f"Content-Disposition: {disposition}", *headers]
    return b"--b\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


@pytest.mark.parametrize(
    "content_type", ["", "image/jpeg", "application/x-www-form-urlencoded", "multipart/mixed", ";;"]
)
async def test_anything_but_a_form_is_the_image_itself(content_type: str) -> None:
    assert await read(IMAGE, content_type) == Upload(IMAGE, ())


@pytest.mark.parametrize("step", [1, 2, 7, 64, 65536])
async def test_a_form_is_read_the_same_however_it_is_cut(step: int) -> None:
    request = httpx.Request(
        "POST",
        "http://x",
        files={"image": ("café.jpg", IMAGE, "image/jpeg")},
        data={"output": "cutout", "threshold": "9"},
    )
    upload = await read(request.read(), request.headers["content-type"], step)
    assert upload == Upload(IMAGE, (("output", "cutout"), ("threshold", "9")))


@pytest.mark.parametrize(
    ("body", "content_type", "kind"),
    [
        (b"", "", EmptyBodyError),
        (b"", FORM, MalformedBodyError),
        (b"x", "multipart/form-data", MalformedBodyError),
        (b"x", "multipart/form-data; boundary=", MalformedBodyError),
        (b"x", "multipart/form-data; boundary=" + "b" * 5000, MalformedBodyError),
        (b"no boundary here", FORM, MalformedBodyError),
        (part("image", IMAGE), FORM, MalformedBodyError),
        (part("image", IMAGE)[:40], FORM, MalformedBodyError),
        (part("image", b"") + b"--b--\r\n", FORM, EmptyBodyError),
        (part("output", b"mask") + b"--b--\r\n", FORM, MissingImageError),
        (part("image", b"1") + part("file", b"2") + b"--b--\r\n", FORM, MissingImageError),
        (part(None, b"1") + b"--b--\r\n", FORM, MalformedBodyError),
        (part("nonsense", b"1"), FORM, ParameterError),
        (part("output", b"m" * 65), FORM, ParameterError),
        (part("output", b"mask") * (MAX_PARTS + 1), FORM, MalformedBodyError),
        (part("image", b"1", "X: " + "y" * 5000), FORM, MalformedBodyError),
        (part("image", b"1", *[f"X-{i}: y" for i in range(2000)]), FORM, MalformedBodyError),
        (b"--b--\r\n", FORM, MissingImageError),
    ],
)
async def test_each_kind_of_broken_body_has_its_error(
    body: bytes, content_type: str, kind: type[ServiceError]
) -> None:
    with pytest.raises(kind) as caught:
        await read(body, content_type)
    assert type(caught.value) is kind


async def test_a_form_inside_a_form_is_taken_for_the_image() -> None:
    inner = b"--deep\r\n" + part("image", IMAGE) + b"--deep--"
    nested = part("image", inner, "Content-Type: multipart/mixed; boundary=deep")
    upload = await read(nested.replace(b"\r\n--b\r\n", b"\r\n--c\r\n") + b"--b--\r\n", FORM)
    assert upload.image.startswith(b"--deep")


async def test_ten_thousand_tiny_parts_end_at_the_limit() -> None:
    seen = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal seen
        for _ in range(10_000):
            seen += 1
            yield part("output", b"mask")

    with pytest.raises(MalformedBodyError):
        await read_upload(chunks(), FORM)
    assert seen == MAX_PARTS + 1


async def test_the_name_of_an_unknown_field_is_quoted_safely() -> None:
    with pytest.raises(ParameterError) as caught:
        await read(part("a\x1b[31m" + "z" * 500, b"1"), FORM)
    assert "\x1b" not in caught.value.detail
    assert len(caught.value.parameter) < 60
