"""`purnet serve` as a user runs it: shipped weights, a worker process, real photos, a port."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from photos import encoded, opened, scene, with_orientation
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ray_cluster import ray_cluster
from service_process import END_S, ServiceProcess, running
from tests.conftest import Require
from typer.testing import CliRunner

from purnet.imaging import open_image
from purnet.inference.factory import load
from purnet.inference.predictor import Predictor
from purnet_serve.cli import app

PHOTOS = ["chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "camera.png"]


@dataclass
class Served:
    backend: str
    process: ServiceProcess
    url: str
    client: httpx.Client

    def mask(self, photo: bytes, query: str = "") -> httpx.Response:
        return self.client.post(f"/v1/mask{query}", content=photo)

    def sample(self, name: str, **labels: str) -> float:
        text = self.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with contextlib.ExitStack() as stack:
        where: list[str] = []
        if request.param == "ray":
            where = ["--backend", "ray", "--address", stack.enter_context(ray_cluster(1)).address]
        yield from serve(request.param, where)


def serve(on: str, where: list[str]) -> Iterator[Served]:
    script = str(Path(sys.executable).parent / "purnet")
    with running([script, "serve", "--port", "0", "--device", "cpu", *where]) as process:
        url = process.await_line("ready at", process.lines).split()[4]
        with httpx.Client(base_url=url, timeout=END_S, trust_env=False) as client:
            yield Served(on, process, url, client)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not any("Traceback" in line for line in process.errors)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load(device="cpu")


def photo(name: str) -> bytes:
    import skimage

    return (Path(skimage.__file__).parent / "data" / name).read_bytes()


@pytest.fixture(scope="module")
def sod226(require: Require) -> list[Path]:
    data = os.environ.get("PURNET_DATA")
    require(data, "PURNET_DATA names the data folder")
    files = sorted((Path(str(data)) / "test" / "sod226" / "image").glob("*.jpg"))
    require(files, "the data folder holds test/sod226")
    return files


def check_same(answer: httpx.Response, photo_bytes: bytes, predictor: Predictor) -> None:
    """As of the photo decoded in full, within the parity gate."""
    check_within_gate(answer, predictor.predict(open_image(photo_bytes)))


def check_within_gate(answer: httpx.Response, truth: np.ndarray) -> None:
    """The parity gate: mean within 1/255, 99.9 % of pixels within 4/255."""
    assert answer.status_code == 200, answer.text
    mask = opened(answer.content)
    assert mask.mode == "L"
    difference = np.abs(np.asarray(mask).astype(int) - truth)
    assert difference.mean() <= 1
    assert np.quantile(difference, 0.999) <= 4


@pytest.mark.parametrize("name", PHOTOS)
def test_each_photo_gets_the_predictor_s_mask(
    served: Served, predictor: Predictor, name: str
) -> None:
    answer = served.mask(photo(name))
    check_same(answer, photo(name), predictor)
    assert answer.headers["x-model-version"].startswith("purnet-lite0-gc@")


def test_the_printed_curl_line_names_a_photo_that_works(served: Served) -> None:
    line = served.process.await_line("curl", served.process.lines)
    path = Path(line.split("@")[1].split()[0])
    assert served.url in line
    assert served.mask(path.read_bytes()).status_code == 200


def test_the_command_line_gets_the_same_from_here_and_from_a_service(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(photo("chelsea.png"))
    for out, more in (("here", []), ("there", ["--url", served.url])):
        arguments = ["predict", str(tmp_path / "cat.png"), "-o", str(tmp_path / out), *more]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    here, there = (
        np.asarray(Image.open(tmp_path / out / "cat.png")).astype(int) for out in ("here", "there")
    )
    assert np.abs(here - there).max() <= 1


def test_many_photos_at_once_each_get_their_own(
    served: Served, predictor: Predictor, sod226: list[Path]
) -> None:
    files = sod226[::6]
    before = served.sample("purnet_batch_size_sum")
    answered = served.sample("purnet_request_seconds_count", route="/v1/mask")
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda file: served.mask(file.read_bytes()), files))
    for file, answer in zip(files, answers, strict=True):
        check_same(answer, file.read_bytes(), predictor)
    if served.backend == "local":  # a model replica publishes it through Ray
        assert served.sample("purnet_batch_size_sum") - before == len(files)
    now = served.sample("purnet_request_seconds_count", route="/v1/mask")
    assert now - answered == len(files)
    for stage in ("receive", "decode", "queue", "infer", "encode", "send"):
        assert served.sample("purnet_stage_seconds_count", stage=stage) >= len(files)
    assert served.sample("purnet_queue_depth") == 0


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation(served: Served, predictor: Predictor, value: int) -> None:
    turned = encoded(opened(photo("chelsea.png")), "JPEG", exif=with_orientation(value))
    check_same(served.mask(turned), turned, predictor)


def test_large_photos_get_the_library_s_masks(served: Served, predictor: Predictor) -> None:
    for name in ("chelsea.png", "rocket.jpg", "astronaut.png"):
        image = open_image(photo(name))
        large = image.resize((image.width * 5, image.height * 5), Image.Resampling.BICUBIC)
        data = encoded(large, "JPEG", quality=90)
        check_within_gate(served.mask(data), predictor.predict(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode(served: Served, predictor: Predictor, mode: str) -> None:
    image = open_image(photo("coffee.png"))
    if mode == "I;16":
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        data = encoded(Image.fromarray(deep))
    else:
        data = encoded(image.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    check_same(served.mask(data), data, predictor)


def test_a_cutout_shows_the_object(served: Served) -> None:
    data = photo("coffee.png")
    cutout = np.asarray(opened(served.mask(data, "?output=cutout").content))
    assert cutout.shape == (400, 600, 4)
    seen = cutout[..., 3:] > 0  # what is not seen is zeroed
    assert np.array_equal(cutout[..., :3], np.asarray(open_image(data)) * seen)


def huge_header() -> bytes:
    body = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + chunk + struct.pack(">I", zlib.crc32(chunk))


def palette() -> bytes:
    return encoded(scene().quantize(8), transparency=2)


def animation(kind: str) -> bytes:
    return encoded(scene(), kind, save_all=True, append_images=[scene().rotate(180)])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"some text", 415),
        (encoded(scene(), "JPEG")[:500], 422),
        (encoded(Image.new("RGB", (1, 1), "red")), 200),
        (encoded(Image.new("RGB", (1, 1), "red"), "JPEG"), 200),
        (huge_header(), 422),
        (encoded(scene().convert("CMYK"), "JPEG"), 200),
        (encoded(Image.new("I;16", (9, 9), 999)), 200),
        (palette(), 200),
        (animation("PNG"), 200),
        (animation("WEBP"), 200),
        (encoded(scene(), "GIF"), 415),
        (encoded(scene(), "TIFF"), 415),
    ],
)
def test_odd_and_bad_input_gets_the_right_status(served: Served, body: bytes, status: int) -> None:
    answer = served.mask(body)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert opened(answer.content).size == opened(body).size
    else:
        assert answer.json()["detail"]
    assert served.sample("purnet_worker_restarts_total") == 0
    assert served.client.get("/readyz").status_code == 200
