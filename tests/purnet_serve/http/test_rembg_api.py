"""rembg's HTTP API, called as rembg's README and its users' programs call it."""

from __future__ import annotations

import asyncio
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
from live_service import Live, MakeLive
from photos import encoded, opened, scene
from tls_host import ADDRESS, HOST, send, tls_host

from purnet_serve.http.fetch import Fetcher
from purnet_serve.http.upload import Upload

pytestmark = pytest.mark.anyio
PHOTO = encoded(scene(), "JPEG", quality=95)


async def post(live: Live, fields: dict[str, str] | None = None, query: str = "") -> httpx.Response:
    return await live.client.post(f"/api/remove{query}", files={"file": PHOTO}, data=fields or {})


async def test_a_cutout_by_requests(live: Live) -> None:
    def remove() -> requests.Response:
        files = {"file": ("cat.jpg", BytesIO(PHOTO), "image/jpeg")}
        return requests.post(f"{live.url}/api/remove", files=files, timeout=WAIT_S)

    answer = await asyncio.to_thread(remove)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    cutout, photo = opened(answer.content), opened(PHOTO).convert("RGB")
    assert (cutout.mode, cutout.size) == ("RGBA", photo.size)
    pixels = np.asarray(cutout)
    shown = pixels[..., 3] > 0
    assert np.array_equal(pixels[shown, :3], np.asarray(photo)[shown])


async def test_a_cutout_by_curl(live: Live, tmp_path: Path) -> None:
    (tmp_path / "input.jpg").write_bytes(PHOTO)
    curl = shutil.which("curl")
    assert curl is not None
    command = [curl, "-sS", "-F", "file=@input.jpg", f"{live.url}/api/remove", "-o", "output.png"]
    done = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, timeout=WAIT_S)
    assert done.returncode == 0
    assert opened((tmp_path / "output.png").read_bytes()).mode == "RGBA"


@pytest.mark.parametrize("where", ["form", "query"])
async def test_only_the_mask(live: Live, where: str) -> None:
    answer = await (post(live, {"om": "true"}) if where == "form" else post(live, query="?om=true"))
    expected = await live.client.post("/v1/mask", content=PHOTO)
    assert answer.headers["content-type"] == "image/png"
    assert opened(answer.content).mode == "L"
    assert answer.content == expected.content
    assert answer.headers["x-model-version"] == expected.headers["x-model-version"]


async def test_a_post_processed_mask_is_black_and_white(live: Live) -> None:
    mask = np.asarray(opened((await post(live, {"om": "true", "ppm": "true"})).content))
    soft = np.asarray(opened((await post(live, {"om": "1"})).content))
    assert set(np.unique(mask)) == {0, 255}
    assert np.abs((mask > 0).mean() - (soft >= 127).mean()) < 0.05
    alpha = np.asarray(opened((await post(live, {"ppm": "true"})).content))[..., 3]
    assert np.array_equal(alpha, mask)


async def test_a_colour_behind_the_object(live: Live) -> None:
    pixels = np.asarray(opened((await post(live, query="?bgc=0,0,255,255")).content))
    cutout = np.asarray(opened((await post(live)).content))
    assert (pixels[..., 3] == 255).all()
    assert (pixels[cutout[..., 3] == 0] == (0, 0, 255, 255)).all()
    three = await post(live, {"bgc": "0, 0, 255"})
    assert np.array_equal(np.asarray(opened(three.content)), pixels)
    clear = np.asarray(opened((await post(live, {"bgc": "0,0,255,0"})).content))
    assert np.array_equal(clear[..., 3], cutout[..., 3])


@pytest.mark.parametrize(
    ("fields", "parameter", "said"),
    [
        ({"model": "u2net"}, "model", "There is no model 'u2net' here; there is fake."),
        ({"a": "true"}, "a", "Alpha matting is not done here"),
        ({"bgc": "red"}, "bgc", "three or four numbers"),
        ({"bgc": "1,2"}, "bgc", "three or four numbers"),
        ({"bgc": "1,2,3,256"}, "bgc", "three or four numbers"),
        ({"om": "perhaps"}, "om", "valid boolean"),
        ({"af": "256"}, "af", "less than or equal to 255"),
        ({"extras": "{}"}, "extras", "There is no form field 'extras'; send the image as `file`"),
    ],
)
async def test_what_is_not_done_here_is_refused_by_name(
    live: Live, fields: dict[str, str], parameter: str, said: str
) -> None:
    answer = await post(live, fields)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "bad_parameter")
    assert problem["parameter"] == parameter
    assert said in problem["detail"]
    assert live.backend.seen == []


@pytest.mark.parametrize("query", ["a=true", "model=u2net"])
async def test_what_is_not_done_here_is_refused_before_the_photo_is_had(
    make_live: MakeLive, query: str
) -> None:
    live = await make_live(fetch_urls=True)
    reader, writer = await live.connect()
    head = f"POST /api/remove?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode())  # and nothing of the body
    async with asyncio.timeout(WAIT_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.transport.abort()

    async def fetch(_url: str, _deadline: float) -> bytes:
        raise AssertionError("fetched")

    live.service.fetcher.fetch = fetch  # type: ignore[method-assign]
    answer = await live.client.get(f"/api/remove?{query}&url=https://{HOST}/")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")


async def test_what_rembg_leaves_without_effect_is_taken(live: Live) -> None:
    fields = {"model": "fake", "a": "false", "af": "200", "ab": "5", "ae": "3", "ppm": "false"}
    assert (await post(live, fields)).content == (await post(live)).content


async def test_a_form_without_a_photo_is_told(live: Live) -> None:
    answer = await live.client.post("/api/remove", files={"om": (None, "true")})
    assert (answer.status_code, answer.json()["code"]) == (400, "missing_image")
    assert "`file`" in answer.json()["detail"]


async def test_it_is_admitted_and_bounded_as_masks_are(make_live: MakeLive, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"right").hexdigest())
    live = await make_live(
        api_keys_file=keys, max_requests_in_flight=1, max_body_bytes=9000, fetch_urls=True
    )
    url = f"/api/remove?url=https://{HOST}/"
    requests_: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/remove", {"content": PHOTO}), ("GET", url, {}), ("HEAD", url, {}),
    ]  # fmt: skip
    for method, path, options in requests_:
        assert (await live.client.request(method, path, **options)).status_code == 401, method
    live.client.headers["X-Api-Key"] = "right"
    too_large = await live.client.post("/api/remove", content=bytes(9001))
    assert (too_large.status_code, too_large.json()["code"]) == (413, "body_too_large")
    live.backend.gate.clear()
    first = asyncio.create_task(live.client.post("/api/remove", content=PHOTO))
    await live.backend.one_arrived()
    for method, path, options in requests_:
        answer = await live.client.request(method, path, **options)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1"), method
    live.backend.gate.set()
    assert (await first).status_code == 200
    await live.idle()
    live.backend.reason = "loading"
    for method, path, options in requests_:
        assert (await live.client.request(method, path, **options)).status_code == 503, method
    assert live.sample(
        "purnet_requests_total", route="/api/remove", method="POST", status="200"
    ) == 1  # fmt: skip


async def test_it_can_be_switched_off(make_live: MakeLive) -> None:
    live = await make_live(rembg_api=False)
    assert (await post(live)).status_code == 404
    assert "/api/remove" not in (await live.client.get("/openapi.json")).json()["paths"]


async def test_urls_are_refused_unless_switched_on(live: Live) -> None:
    answer = await live.client.get("/api/remove", params={"url": f"https://{HOST}/cat.jpg"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "url_refused")
    assert "send the photo itself" in problem["detail"]
    missing = await live.client.get("/api/remove")
    assert missing.json()["parameter"] == "url"


async def test_a_photo_at_a_url(make_live: MakeLive) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        await send(writer, PHOTO if path == "/cat.jpg" else b"<html>")

    addresses = [ADDRESS]

    async def names(_name: str, _port: int) -> list[str]:
        return addresses

    live = await make_live(fetch_urls=True)
    async with tls_host(answer) as host:
        live.service.fetcher = Fetcher(
            live.service.settings, resolve=names, trust=host.trust, network=host.network
        )
        found = await live.client.get("/api/remove", params={"url": f"https://{HOST}/cat.jpg"})
        assert found.status_code == 200, found.text
        assert found.content == (await post(live)).content
        page = await live.client.get("/api/remove", params={"url": f"https://{HOST}/"})
        assert (page.status_code, page.json()["code"]) == (415, "unsupported_media")
        head = await live.client.head("/api/remove", params={"url": f"https://{HOST}/cat.jpg"})
        assert (head.status_code, head.content) == (200, b"")
        addresses[:] = ["127.0.0.1"]
        private = await live.client.get("/api/remove", params={"url": f"https://{HOST}/cat.jpg"})
    await live.idle()
    assert (private.status_code, private.json()["code"]) == (400, "url_refused")
    assert live.service.admission.bytes == 0


class Fetched:
    """In place of a fetcher: always the same photo, and whether it was freed."""

    def __init__(self) -> None:
        self.freed = asyncio.Event()

    def check_on(self) -> None:
        pass

    async def fetch(self, _url: str, _deadline: float) -> bytes:
        loop, freed = asyncio.get_running_loop(), self.freed

        class Photo(bytes):
            def __del__(self) -> None:
                loop.call_soon_threadsafe(freed.set)

        return Photo(PHOTO)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_photo_is_freed_once_it_is_decoded(
    live: Live, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = Fetched()

    async def read(*_arguments: object) -> Upload:
        return Upload(await fetched.fetch("", 0))

    monkeypatch.setattr("purnet_serve.http.rembg_api.read_upload", read)
    monkeypatch.setattr(live.service, "fetcher", fetched)
    live.backend.gate.clear()
    query = "om=true" if method == "POST" else f"om=true&url=https://{HOST}/"
    request = asyncio.create_task(live.client.request(method, f"/api/remove?{query}"))
    await live.backend.one_arrived()
    async with asyncio.timeout(WAIT_S):
        await fetched.freed.wait()
    live.backend.gate.set()
    assert (await request).status_code == 200


async def test_a_fetch_has_its_own_time_and_not_the_upload_s(make_live: MakeLive) -> None:
    async def answer(_path: str, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def names(_name: str, _port: int) -> list[str]:
        return [ADDRESS]

    live = await make_live(fetch_urls=True, upload_timeout_s=0.05, fetch_timeout_s=0.4)
    async with tls_host(answer) as host:
        live.service.fetcher = Fetcher(
            live.service.settings, resolve=names, trust=host.trust, network=host.network
        )
        url = f"https://{HOST}/cat.jpg"
        found = await live.client.get("/api/remove", params={"url": url})
        assert (found.status_code, found.json()["code"]) == (400, "fetch_failed")
        late = await live.client.get(
            "/api/remove", params={"url": url}, headers={"X-Timeout-Ms": "200"}
        )
        assert (late.status_code, late.json()["code"]) == (504, "deadline")


async def test_a_photo_that_is_fetched_counts_as_the_largest_upload(make_live: MakeLive) -> None:
    live = await make_live(fetch_urls=True, max_body_bytes=10**6, max_bytes_in_flight=10**6)
    live.backend.gate.clear()
    first = asyncio.create_task(post(live))
    await live.backend.one_arrived()
    for headers in ({}, {"Content-Length": "0"}):
        url = f"/api/remove?url=https://{HOST}/cat.jpg"
        answer = await live.client.get(url, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_bytes")
    live.backend.gate.set()
    assert (await first).status_code == 200
