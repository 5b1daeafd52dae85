"""Both clients against the real server over real sockets; only the network is a fake."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from both_clients import Call, Caller
from live_service import Live, MakeLive
from photos import encoded, opened, scene, with_orientation
from PIL import Image

from purnet_serve.client import (
    ApiKeyError,
    AsyncPurNetClient,
    DeadlineError,
    Options,
    PhotoError,
    PurNetClient,
    PurNetError,
    RequestError,
    Result,
    RetryPolicy,
    ServerError,
)
from purnet_serve.client.result import read_result
from purnet_serve.http.parameters import MaskOptions

pytestmark = pytest.mark.anyio


async def test_a_mask_and_what_the_service_says_of_it(live: Live, call: Call) -> None:
    client = call(live.url)
    result: Result = await client.call("mask", encoded(scene(96, 64)))
    picture = result.image()
    assert (picture.mode, picture.size, result.media_type) == ("L", (96, 64), "image/png")
    assert (result.width, result.height, result.model) == (96, 64, "fake@aaaaaaaaaaaa")
    assert result.timings_ms.keys() == {"receive", "decode", "queue", "infer", "encode"}
    assert result.box is not None
    left, top, right, bottom = result.box
    assert (top, right, bottom) == (0, 96, 64)
    assert np.asarray(picture)[:, left].min() >= 128
    assert len(result.request_id) == 32
    assert await client.call("model") == "fake@aaaaaaaaaaaa"


async def test_a_cutout_with_options(live: Live, call: Call, tmp_path: Path) -> None:
    result = await call(live.url).call(
        "cutout", encoded(scene()), size="model", threshold=128, format="webp"
    )
    picture = result.image()
    assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGBA", (32, 32))
    assert set(np.unique(np.asarray(picture)[..., 3])) == {0, 255}
    result.save(tmp_path / "cutout.webp")
    assert (tmp_path / "cutout.webp").read_bytes() == result.data


async def test_a_photo_in_any_form_gets_the_same_mask(
    live: Live, call: Call, tmp_path: Path
) -> None:
    """A JPEG turned by EXIF: a Pillow image of it is sent upright, and only once."""
    data = encoded(scene(96, 64), "JPEG", quality=95, exif=with_orientation(6))
    path = tmp_path / "turned.jpg"
    path.write_bytes(data)
    client = call(live.url)
    expected = opened((await client.call("mask", data)).data)
    assert expected.size == (64, 96)
    with path.open("rb") as file, Image.open(path) as image:
        for photo in (path, str(path), BytesIO(data), file, image):
            found = (await client.call("mask", photo)).image()
            apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
            # What is turned before it is resized instead of after may be rounded another way.
            assert apart.max() <= (photo is image), photo


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
async def test_pillow_images_of_any_mode_are_taken(live: Live, mode: str) -> None:
    grey = scene(20, 10).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16)) if mode == "I;16" else None
    async with AsyncPurNetClient(live.url) as client:
        assert (await client.mask(image or grey.convert(mode))).image().size == (20, 10)


async def test_what_is_no_photo_is_said_before_anything_is_sent(
    live: Live, call: Call, tmp_path: Path
) -> None:
    client = call(live.url)
    with pytest.raises(PhotoError, match=r"none\.jpg cannot be read: No such file") as raised:
        await client.call("mask", tmp_path / "none.jpg")
    assert (raised.value.code, raised.value.status) == ("unreadable", None)
    (tmp_path / "text.jpg").write_text("text")
    with (tmp_path / "text.jpg").open() as file, pytest.raises(TypeError, match="binary mode"):
        await client.call("mask", file)
    with pytest.raises(TypeError, match="not 7"):
        await client.call("mask", 7)
    assert live.backend.seen == []


async def test_refusals_have_a_type_a_code_and_the_id_of_their_request(
    make_live: MakeLive, call: Call, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"right").hexdigest())
    live = await make_live(api_keys_file=keys, max_body_bytes=5000)
    photo, client = encoded(scene()), call(live.url, api_key="right")
    cases: list[tuple[type[PurNetError], int, str, Caller, bytes, dict[str, Any]]] = [
        (ApiKeyError, 401, "key_missing", call(live.url), photo, {}),
        (ApiKeyError, 403, "key_unknown", call(live.url, api_key="wrong"), photo, {}),
        (PhotoError, 415, "unsupported_media", client, b"%PDF-1.7", {}),
        (PhotoError, 413, "body_too_large", client, bytes(5001), {}),
        (PhotoError, 422, "broken_image", client, photo[:60], {}),
        (PhotoError, 400, "empty_body", client, b"", {}),
        (RequestError, 400, "bad_parameter", client, photo, {"threshold": 256}),
        (RequestError, 404, "not_found", call(f"{live.url}/nothing", api_key="right"), photo, {}),
    ]
    for kind, status, code, caller, data, options in cases:
        with pytest.raises(kind) as raised:
            await caller.call("mask", data, **options)
        error = raised.value
        assert (type(error), error.status, error.code) == (kind, status, code)
        assert error.request_id is not None
        assert len(error.request_id) == 32
        assert error.detail
        assert str(error) == f"{error.detail} ({status}, {code}, request {error.request_id})"


async def test_the_service_ends_a_request_at_the_client_s_deadline(live: Live, call: Call) -> None:
    live.backend.gate.clear()
    client = call(live.url, retries=RetryPolicy(timeout_s=0.3))
    with pytest.raises(DeadlineError) as raised:
        await client.call("mask", encoded(scene()))
    assert (raised.value.status, raised.value.code) == (504, "deadline")


async def test_something_else_that_answers_is_told(call: Call) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for method, arguments in (("mask", [b"photo"]), ("model", [])):
            with pytest.raises(ServerError, match=f"{url}/v1/.* is not PurNet Serve") as raised:
                await call(url).call(method, *arguments)
            assert raised.value.code == "no_purnet"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "file:///etc", "http://", "http://h:x", "", "http://h:8000\n"]
)
async def test_a_bad_address_is_refused(url: str) -> None:
    for kind in (PurNetClient, AsyncPurNetClient):
        with pytest.raises(ValueError, match=r"address|Port"):
            kind(url)


async def test_a_key_is_sent_in_utf_8_and_one_that_no_header_can_hold_is_refused(
    make_live: MakeLive, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256("schl\u00fcssel".encode()).hexdigest())
    live = await make_live(api_keys_file=keys)
    async with AsyncPurNetClient(live.url, api_key="schl\u00fcssel") as client:
        assert (await client.mask(encoded(scene()))).width == 96
    with pytest.raises(ValueError, match="no header may have"):
        PurNetClient(live.url, api_key="two\nlines")


def test_what_a_proxy_adds_to_the_timings_fails_no_result() -> None:
    ours = "receive;dur=1.5, decode;dur=2"
    theirs = 'cfExtPri, cache;desc="HIT", cdn;dur=12;desc="x, y", edge;dur=x'
    headers = {
        "Content-Type": "image/png",
        "X-Width": "4",
        "X-Height": "3",
        "X-Model-Version": "purnet@1",
        "X-Request-Id": "1",
        "Server-Timing": f"{theirs}, {ours}",
    }
    result = read_result(httpx.Response(200, headers=headers, content=b"png"))
    assert result.timings_ms == {"receive": 1.5, "decode": 2.0}


async def test_concurrency_begins_at_one(live: Live, call: Call) -> None:
    with pytest.raises(ValueError, match="at least one"):
        await call(live.url).many([b""], concurrency=0)


async def test_a_client_of_one_s_own_is_used_and_left_open(live: Live) -> None:
    with httpx.Client(headers={"X-Request-Id": "mine"}) as http:

        def ask() -> str:
            with PurNetClient(f"{live.url}/", http=http) as client:
                return client.mask(encoded(scene())).request_id

        assert await asyncio.to_thread(ask) == "mine"
        assert not http.is_closed


async def test_a_prefix_of_the_path_is_kept(make_live: MakeLive, call: Call) -> None:
    live = await make_live(root_path="/purnet")
    assert (await call(f"{live.url}/purnet").call("mask", encoded(scene()))).width == 96


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def arguments(kind: type, name: str) -> list[str]:
        return [*inspect.signature(getattr(kind, name)).parameters]

    for name in ("mask", "cutout", "many", "model", "close", "__init__"):
        assert arguments(PurNetClient, name) == arguments(AsyncPurNetClient, name)


def test_the_options_are_the_service_s_parameters() -> None:
    assert {*Options.__annotations__, "output"} == set(MaskOptions.model_fields)


def test_the_client_loads_nothing_of_the_service() -> None:
    code = (
        "import sys, purnet_serve.client; "
        "sys.exit(' '.join({'fastapi', 'pydantic', 'uvicorn', 'PIL', 'numpy', 'torch'}"
        " & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
