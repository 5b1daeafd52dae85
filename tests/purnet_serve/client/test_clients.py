"""Both clients against the real server over real sockets; only the network is a fake."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from both_clients import Caller
from fake_backend import WAIT_S, FakeBackend
from live_service import Live, MakeLive
from photos import encoded, opened, scene, with_orientation
from PIL import Image

from purnet_serve.client import (
    ApiKeyError,
    AsyncPurNetClient,
    BusyError,
    DeadlineError,
    NoAnswerError,
    Options,
    PhotoError,
    PurNetClient,
    PurNetError,
    RequestError,
    Result,
    RetryPolicy,
    ServerError,
)
from purnet_serve.client.clients import READAHEAD_FACTOR
from purnet_serve.client.result import read_result
from purnet_serve.http.parameters import MaskOptions

pytestmark = pytest.mark.anyio

Call = Callable[..., Caller]


@pytest.fixture(params=["threads", "asyncio"])
async def call(request: pytest.FixtureRequest) -> AsyncIterator[Call]:
    made: list[Caller] = []

    def make(url: str, **options: Any) -> Caller:
        made.append(Caller(request.param, url, **options))
        return made[-1]

    yield make
    for caller in made:
        await caller.close()


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


async def test_a_busy_service_is_asked_again_after_what_it_says(
    make_live: MakeLive, call: Call
) -> None:
    live = await make_live(max_requests_in_flight=1, retry_after_s=7)
    live.backend.gate.clear()
    first = asyncio.create_task(live.client.post("/v1/mask", content=encoded(scene())))
    await live.backend.one_arrived()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        live.backend.gate.set()
        assert (await first).status_code == 200
        await live.idle()

    assert (await call(live.url, sleep=sleep).call("mask", encoded(scene()))).width == 96
    assert waits == [7.0]


async def test_a_service_that_stays_busy_is_told_after_the_last_retry(
    make_live: MakeLive, call: Call
) -> None:
    backend = FakeBackend()
    live = await make_live(backend)
    backend.reason = "the model is being loaded"
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    client = call(live.url, sleep=sleep, retries=RetryPolicy(retries=3, first_wait_s=0.25))
    with pytest.raises(BusyError, match="the model is being loaded") as raised:
        await client.call("mask", encoded(scene()))
    assert (raised.value.status, raised.value.code) == (503, "not_ready")
    assert waits == [1.0, 1.0, 1.0]


async def test_a_connection_that_breaks_is_made_again(make_live: MakeLive, call: Call) -> None:
    """The first attempt is hung up on, the second reaches nothing, the third a service."""
    taken: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.read(1))
        writer.close()

    rude = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = rude.sockets[0].getsockname()[1]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            rude.close()
            await rude.wait_closed()
        else:
            await make_live(port=port)

    client = call(f"http://127.0.0.1:{port}", sleep=sleep)
    assert (await client.call("mask", encoded(scene()))).width == 96
    assert taken == [b"P"]
    assert waits == [0.25, 0.5]


async def test_nothing_there_is_told_after_the_last_retry(call: Call) -> None:
    async def sleep(_: float) -> None:
        """No time passes."""

    client = call("http://127.0.0.1:9", sleep=sleep, retries=RetryPolicy(retries=1))
    with pytest.raises(NoAnswerError) as raised:
        await client.call("mask", b"photo")
    assert (raised.value.code, raised.value.status) == ("no_answer", None)


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


async def test_many_come_in_order_each_with_its_mask_or_its_error(
    live: Live, call: Call, tmp_path: Path
) -> None:
    photos: list[Any] = [encoded(scene(20 + n, 10)) for n in range(12)]
    photos[3], photos[7] = b"text", tmp_path / "none.jpg"
    heard: list[tuple[int, int | None]] = []
    outcomes = await call(live.url).many(
        photos,
        concurrency=3,
        output="cutout",
        progress=lambda *told: heard.append(told),
        size="model",
    )
    assert [outcome.photo for outcome in outcomes] == photos
    for number, outcome in enumerate(outcomes):
        if number in (3, 7):
            assert (outcome.result, type(outcome.error)) == (None, PhotoError)
        else:
            assert outcome.result is not None
            assert (outcome.result.width, outcome.error) == (20 + number, None)
            assert outcome.result.image().size == (32, 32)
            assert outcome.result.image().mode == "RGBA"
    assert heard == [(number, 12) for number in range(1, 13)]


async def test_only_so_many_are_sent_at_a_time_and_read_ahead(live: Live, call: Call) -> None:
    live.backend.gate.clear()
    read: list[int] = []

    def photos() -> Iterator[bytes]:
        for number in range(20):
            read.append(number)
            yield encoded(scene(20 + number, 10))

    heard: list[tuple[int, int | None]] = []
    sending = asyncio.create_task(
        call(live.url).many(photos(), concurrency=2, progress=lambda *told: heard.append(told))
    )
    for _ in range(2):
        await live.backend.one_arrived()
    assert live.service.admission.requests == 2
    assert len(read) <= READAHEAD_FACTOR * 2
    live.backend.gate.set()
    async with asyncio.timeout(WAIT_S):
        outcomes = await sending
    assert [outcome.result.width for outcome in outcomes if outcome.result] == [*range(20, 40)]
    assert heard[-1] == (20, None)


async def test_leaving_many_early_leaves_nothing_behind(live: Live) -> None:
    async with AsyncPurNetClient(live.url) as client:
        before = asyncio.all_tasks()
        outcomes: Any = client.many([encoded(scene())] * 20, concurrency=2)
        async for _ in outcomes:
            break
        await outcomes.aclose()
        left = asyncio.all_tasks() - before
        # Those of the service, which runs on this loop too, may be at their end.
        assert not [task for task in left if "purnet_serve/client" in str(task.get_coro())]

    def leave() -> None:
        with PurNetClient(live.url) as client:
            for _ in client.many([encoded(scene())] * 20, concurrency=2):
                break

    await asyncio.to_thread(leave)
    await live.idle()
    assert len(live.backend.seen) <= 2 * (1 + READAHEAD_FACTOR * 2)


def test_leaving_many_ends_the_waits_of_its_retries() -> None:
    """The first photo cannot be read; the second finds no service, and would wait for minutes."""
    waits = RetryPolicy(timeout_s=300, first_wait_s=60, longest_wait_s=60)

    def leave() -> None:
        with PurNetClient("http://127.0.0.1:9", retries=waits) as client:
            outcomes = client.many(["missing.jpg", b"photo"], concurrency=2)
            assert next(outcomes).error is not None
            outcomes.close()  # returns when its threads have ended

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()


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
