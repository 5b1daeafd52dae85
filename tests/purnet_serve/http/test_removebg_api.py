"""remove.bg's API, called as the samples of its documentation call it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
from fake_backend import WAIT_S
from image_files import heic, png_with
from live_service import Live, MakeLive
from photos import encoded, opened, scene
from PIL import Image
from tls_host import ADDRESS, HOST, send, tls_host

from purnet_serve.http.fetch import Fetcher
from purnet_serve.http.removebg_api import PIECE_BYTES

pytestmark = pytest.mark.anyio
PATH = "/v1.0/removebg"
PHOTO = encoded(scene(), "JPEG", quality=95)
B64 = base64.b64encode(PHOTO).decode()


def object_photo() -> bytes:
    """Red, so salient to the fake network, in columns 40 to 59 and rows 20 to 39 of 100 by 80."""
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[20:40, 40:60, 0] = 255
    return encoded(Image.fromarray(pixels))


async def post(live: Live, photo: bytes = PHOTO, **fields: str) -> httpx.Response:
    return await live.client.post(PATH, files={"image_file": photo}, data=fields)


async def picture(live: Live, photo: bytes = PHOTO, **fields: str) -> Image.Image:
    answer = await post(live, photo, **fields)
    assert answer.status_code == 200, answer.text
    found = opened(answer.content)
    size = int(answer.headers["x-width"]), int(answer.headers["x-height"])
    assert found.size == size
    return found


def error(answer: httpx.Response) -> dict[str, str]:
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    (only,) = answer.json()["errors"]
    return dict(only)


async def test_the_sample_for_python(live: Live) -> None:
    def call() -> requests.Response:
        return requests.post(
            f"{live.url}{PATH}",
            files={"image_file": BytesIO(PHOTO)},
            data={"size": "auto"},
            headers={"X-Api-Key": "INSERT_YOUR_API_KEY_HERE"},
            timeout=WAIT_S,
        )

    answer = await asyncio.to_thread(call)
    assert answer.status_code == requests.codes.ok
    cutout, photo = opened(answer.content), opened(PHOTO)
    assert (cutout.format, cutout.mode, cutout.size) == ("PNG", "RGBA", photo.size)
    headers = answer.headers
    assert (headers["X-Type"], headers["X-Credits-Charged"]) == ("other", "0")
    assert (headers["X-Width"], headers["X-Height"]) == ("96", "64")
    assert int(headers["X-Foreground-Left"]) + int(headers["X-Foreground-Width"]) == 96
    assert (headers["X-Foreground-Top"], headers["X-Foreground-Height"]) == ("0", "64")


async def test_the_sample_for_curl(live: Live, tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(PHOTO)
    curl = shutil.which("curl")
    assert curl is not None
    command = [
        curl, "-sS", "-H", "X-API-Key: key", "-F", "image_file=@file.jpg", "-F", "size=auto",
        "-f", f"{live.url}{PATH}", "-o", "no-bg.png",
    ]  # fmt: skip
    done = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, timeout=WAIT_S)
    assert done.returncode == 0
    assert opened((tmp_path / "no-bg.png").read_bytes()).mode == "RGBA"


@pytest.mark.parametrize("kind", ["json", "urlencoded", "unescaped", "form", "data URL"])
async def test_the_photo_in_base64(live: Live, kind: str) -> None:
    expected = await post(live, size="auto")
    fields = {"image_file_b64": B64, "size": "auto", "image_url": "", "crop": "false"}
    if kind == "json":
        sent: dict[str, Any] = {"json": {**fields, "crop": False, "bg_color": None}}
    elif kind == "urlencoded":
        sent = {"data": fields}
    elif kind == "unescaped":
        sent = {
            "content": f"size=auto&image_file_b64={B64}",
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        }
        assert "+" in B64
    elif kind == "form":
        sent = {"files": {name: (None, value) for name, value in fields.items()}}
    else:
        sent = {"json": {"image_file_b64": f"data:image/jpeg;base64,{B64}", "size": "auto"}}
    answer = await live.client.post(PATH, **sent)
    assert answer.status_code == 200, answer.text
    assert answer.content == expected.content
    await live.idle()
    assert live.service.admission.bytes == 0


async def test_an_answer_in_json(live: Live) -> None:
    answer = await live.client.post(
        PATH, json={"image_file_b64": B64, "size": "auto"}, headers={"Accept": "application/json"}
    )
    assert answer.headers["content-type"] == "application/json"
    data = answer.json()["data"]
    assert base64.b64decode(data["result_b64"]) == (await post(live, size="auto")).content
    assert data["foreground_left"] + data["foreground_width"] == 96
    assert (data["foreground_top"], data["foreground_height"]) == (0, 64)
    await live.idle()
    assert live.service.answer_memory.reserved_bytes == 0


async def test_an_answer_in_json_needs_no_more_memory_than_the_picture(make_live: MakeLive) -> None:
    live = await make_live(max_answer_bytes=1)
    photo = encoded(Image.effect_noise((400, 300), 90).convert("RGB"), "JPEG", quality=95)
    sent = {"image_file_b64": base64.b64encode(photo).decode(), "size": "auto"}
    answer = await live.client.post(PATH, json=sent, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    assert len(answer.content) == int(answer.headers["content-length"]) > PIECE_BYTES
    found = base64.b64decode(answer.json()["data"]["result_b64"])
    assert found == (await post(live, photo, size="auto")).content


@pytest.mark.parametrize(
    ("size", "most"),
    [(None, 250_000), ("preview", 250_000), ("medium", 1_500_000), ("hd", 4_000_000),
     ("full", 10**8), ("auto", 10**8)],
)  # fmt: skip
async def test_sizes(live: Live, size: str | None, most: int) -> None:
    photo = encoded(scene(2400, 2000), "JPEG")
    found = await picture(live, photo, **({} if size is None else {"size": size}))
    assert found.width * found.height <= most
    assert found.width * found.height > 0.99 * min(most, 2400 * 2000)
    assert abs(found.width / found.height - 1.2) < 0.01


async def test_channels_and_formats(live: Live) -> None:
    alpha = await picture(live, channels="alpha")
    mask = await live.client.post("/v1/mask", content=PHOTO)
    assert (alpha.mode, np.array_equal(np.asarray(alpha), np.asarray(opened(mask.content)))) == (
        "L",
        True,
    )
    assert (await picture(live, format="png", bg_color="fff")).mode == "RGBA"
    assert (await picture(live, format="webp")).format == "WEBP"
    jpeg = await picture(live, object_photo(), format="jpg")
    assert (jpeg.format, jpeg.mode, jpeg.getpixel((1, 1))) == ("JPEG", "RGB", (255, 255, 255))
    assert (await picture(live, channels="alpha", format="jpg")).mode == "L"


@pytest.mark.parametrize(
    ("colour", "found"),
    [("81d4fa", (129, 212, 250)), ("#81d4fa", (129, 212, 250)), ("0f0", (0, 255, 0)),
     ("green", (0, 128, 0)), ("81d4faff", (129, 212, 250))],
)  # fmt: skip
async def test_an_opaque_colour_behind_the_object_is_a_jpeg_by_itself(
    live: Live, colour: str, found: tuple[int, int, int]
) -> None:
    jpeg = await picture(live, object_photo(), bg_color=colour)
    assert (jpeg.format, jpeg.mode) == ("JPEG", "RGB")
    corner = jpeg.getpixel((2, 2))
    assert isinstance(corner, tuple)
    assert all(abs(a - b) <= 2 for a, b in zip(corner, found, strict=True))


async def test_a_clear_colour_behind_the_object(live: Live) -> None:
    cutout = await picture(live, object_photo(), bg_color="81d4fa77")
    assert (cutout.format, cutout.getpixel((2, 2))) == ("PNG", (129, 212, 250, 0x77))
    assert cutout.getpixel((50, 30)) == (255, 0, 0, 255)


@pytest.mark.parametrize(
    ("margin", "sides"),
    [(None, (0, 0, 0, 0)), ("3px", (3, 3, 3, 3)), ("2px 5px", (2, 5, 2, 5)),
     ("1px 2px 3px 4px", (1, 2, 3, 4)), ("500px", (20, 40, 40, 40))],
)  # fmt: skip
async def test_cropping(live: Live, margin: str | None, sides: tuple[int, int, int, int]) -> None:
    fields = {"crop": "true", **({} if margin is None else {"crop_margin": margin})}
    bare = await picture(live, object_photo(), crop="true")
    soft = 4  # columns and rows by which the soft mask of 32 pixels goes beyond the object
    assert 20 <= bare.width <= 20 + 2 * soft
    assert 20 <= bare.height <= 20 + 2 * soft
    found = await picture(live, object_photo(), **fields)
    above, right, below, left = sides
    if margin == "500px":
        assert found.size == (100, 80), "no further than the photo"
    else:
        assert found.size == (bare.width + left + right, bare.height + above + below)
    half = await picture(live, object_photo(), crop="true", crop_margin="50%")
    assert abs(half.width - 2 * bare.width) <= 2


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"size": "huge"}, "invalid_size", "must be 'preview'"),
        ({"format": "zip"}, "invalid_format", "must be 'auto', 'png', 'jpg' or 'webp'"),
        ({"channels": "rgb"}, "invalid_channels", "must be 'rgba' or 'alpha'"),
        ({"bg_color": "nocolour"}, "invalid_bg_color", "must be a colour"),
        ({"bg_color": "12345"}, "invalid_bg_color", "must be a colour"),
        ({"bg_color": "rgb(0,0,999)"}, "invalid_bg_color", "must be a colour"),
        ({"bg_color": "hsl(0,900%,50%)"}, "invalid_bg_color", "must be a colour"),
        ({"bg_color": "fff8", "format": "jpg"}, "invalid_bg_color", "must be opaque"),
        ({"crop_margin": "51%"}, "invalid_crop_margin", "up to 500px or 50%"),
        ({"crop_margin": "1px 2px 3px"}, "invalid_crop_margin", "one, two or four"),
        ({"crop": "perhaps"}, "invalid_crop", "valid boolean"),
        ({"roi": "10% 10% 90% 90%"}, "invalid_roi", "must be '0% 0% 100% 100%'"),
        ({"scale": "50%"}, "invalid_scale", "must be 'original'"),
        ({"position": "center"}, "invalid_position", "must be 'original'"),
        ({"add_shadow": "true"}, "invalid_add_shadow", "must be 'false'"),
        ({"bg_image_url": "https://x"}, "invalid_bg_image_url", "There is no form field"),
        ({"image_url": "https://x"}, "multiple_sources", "Send one of"),
        ({"image_file_b64": B64}, "multiple_sources", "Send one of"),
    ],
)
async def test_what_is_not_done_here_is_refused_in_remove_bg_s_words(
    live: Live, fields: dict[str, str], code: str, said: str
) -> None:
    answer = await post(live, **fields)
    told = error(answer)
    assert (answer.status_code, told["code"]) == (400, code)
    assert said in told["detail"]
    assert told["title"]
    assert live.backend.seen == []


async def test_a_parameter_in_the_url_is_refused(live: Live) -> None:
    answer = await live.client.post(f"{PATH}?size=full", files={"image_file": PHOTO})
    told = error(answer)
    assert (answer.status_code, told["code"]) == (400, "invalid_size")
    assert "belongs in the body, not in the URL" in told["detail"]


async def test_hints_have_no_effect(live: Live) -> None:
    plain = await post(live)
    answer = await post(live, type="car", type_level="none", semitransparency="false", roi="")
    assert answer.content == plain.content
    assert "x-type" not in answer.headers


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"text", "invalid_file_type"),
        (PHOTO[:300], "failed_to_read_image"),
        (png_with(width=16000, height=16000), "resolution_too_high"),
        (png_with(width=20000, height=10), "resolution_too_high"),
        (b"", "missing_source"),
        (encoded(Image.new("RGB", (40, 30), "black")), "unknown_foreground"),
    ],
)
async def test_photos_that_cannot_be_answered(live: Live, body: bytes, code: str) -> None:
    answer = await post(live, body)
    assert (answer.status_code, error(answer)["code"]) == (400, code)


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("application/json", b"{", "malformed_body"),
        ("application/json", b"[1]", "malformed_body"),
        ("application/json", b'{"\\ud800": "1"}', "malformed_body"),
        ("application/json", b"\xff", "malformed_body"),
        ("application/json", b"[" * 100_000, "malformed_body"),
        ("application/json", b"{}", "missing_source"),
        ("application/json", b'{"image_file_b64": {}}', "invalid_image_file_b64"),
        ("application/json", b'{"image_file_b64": "a"}', "invalid_image_file_b64"),
        ("application/json", b'{"image_file_b64": "===="}', "missing_source"),
        ("application/json", b'{"size": "auto", "size": "hd"}', "invalid_size"),
        ("application/x-www-form-urlencoded", b"&".join([b"a=b"] * 99), "malformed_body"),
        ("application/x-www-form-urlencoded", b"\xff", "malformed_body"),
    ],
)
async def test_bodies_that_are_none(live: Live, kind: str, body: bytes, code: str) -> None:
    answer = await live.client.post(PATH, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, error(answer)["code"]) == (400, code)


async def test_it_is_admitted_and_bounded_as_masks_are(make_live: MakeLive, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"right").hexdigest())
    live = await make_live(api_keys_file=keys, max_requests_in_flight=1, max_body_bytes=9000)
    for path in (PATH, "/v1.0/account"):
        method = "POST" if path == PATH else "GET"
        for headers, title in (({}, "Missing API Key"), ({"X-Api-Key": "x"}, "Invalid API Key")):
            answer = await live.client.request(method, path, headers=headers)
            assert (answer.status_code, error(answer)["title"]) == (403, title)
            assert error(answer)["code"] == "auth_failed"
    live.client.headers["X-Api-Key"] = "right"
    too_large = await live.client.post(PATH, content=bytes(9001))
    assert (too_large.status_code, error(too_large)["code"]) == (400, "file_too_large")
    live.backend.gate.clear()
    first = asyncio.create_task(post(live))
    await live.backend.one_arrived()
    busy = await post(live)
    assert (busy.status_code, error(busy)["code"]) == (429, "rate_limit_exceeded")
    assert busy.headers["retry-after"] == "1"
    live.backend.gate.set()
    assert (await first).status_code == 200
    await live.idle()
    live.backend.reason = "loading"
    loading = await post(live)
    assert (loading.status_code, error(loading)["code"]) == (503, "not_ready")
    wrong = await live.client.get(PATH)
    assert (wrong.status_code, error(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    name = "purnet_requests_total"
    assert live.sample(name, route=PATH, method="POST", status="400") == 1


@pytest.mark.parametrize("kind", ["json", "form"])
async def test_base64_counts_for_what_it_takes(make_live: MakeLive, kind: str) -> None:
    most = len(PHOTO) + 2 * len(B64)
    live = await make_live(max_body_bytes=most, max_bytes_in_flight=most)
    sent: dict[str, Any] = {"json": {"image_file_b64": B64}}
    if kind == "form":
        sent = {"files": {"image_file_b64": (None, B64)}}
    live.backend.gate.clear()
    first = asyncio.create_task(post(live))
    await live.backend.one_arrived()
    answer = await live.client.post(PATH, **sent)
    assert (answer.status_code, error(answer)["code"]) == (429, "rate_limit_exceeded")
    live.backend.gate.set()
    assert (await first).status_code == 200
    await live.idle()
    alone = await live.client.post(PATH, **sent)
    assert alone.status_code == 200, "what fits at no time is granted alone"
    await live.idle()
    assert live.service.admission.bytes == 0


async def test_the_account_has_always_calls_left(live: Live) -> None:
    attributes = (await live.client.get("/v1.0/account")).json()["data"]["attributes"]
    assert attributes["api"]["free_calls"] > 0
    assert set(attributes["credits"]) == {"total", "subscription", "payg", "enterprise"}


async def test_it_can_be_switched_off(make_live: MakeLive) -> None:
    live = await make_live(removebg_api=False)
    for answer in (await post(live), await live.client.get("/v1.0/account")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert PATH not in (await live.client.get("/openapi.json")).json()["paths"]


async def test_urls_are_refused_unless_switched_on(live: Live) -> None:
    answer = await live.client.post(PATH, json={"image_url": f"https://{HOST}/cat.jpg"})
    told = error(answer)
    assert (answer.status_code, told["code"]) == (400, "invalid_image_url")
    assert "send the photo itself" in told["detail"]


async def test_a_photo_at_a_url(make_live: MakeLive) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        await send(writer, heic() if path == "/cat" else b"")

    async def names(_name: str, _port: int) -> list[str]:
        return [ADDRESS]

    live = await make_live(fetch_urls=True)
    async with tls_host(answer) as host:
        live.service.fetcher = Fetcher(
            live.service.settings, resolve=names, trust=host.trust, network=host.network
        )
        for sent in (
            {"json": {"image_url": f"https://{HOST}/cat"}},
            {"data": {"image_url": f"https://{HOST}/cat"}},
            {"files": {"image_url": (None, f"https://{HOST}/cat")}},
        ):
            found = await live.client.post(PATH, **sent)
            assert found.status_code == 200, found.text
            assert found.content == (await post(live, heic())).content
        failed = await live.client.post(PATH, json={"image_url": f"https://{HOST}/none"})
        assert error(failed)["code"] == "failed_image_download"
    await live.idle()
    assert live.service.admission.bytes == 0
