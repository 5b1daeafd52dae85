from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest
from image_files import heic
from live_service import Live, MakeLive
from photos import encoded, opened, scene, with_orientation
from PIL import Image

from purnet.imaging import open_image, resize_mask, to_pixels
from purnet_serve.errors import NonFiniteError, WorkerError

pytestmark = pytest.mark.anyio

PHOTO = encoded(scene())


def expected_mask(photo: bytes) -> np.ndarray:
    """What the fake backend's mask (the red channel) looks like at the photo's own size."""
    image = open_image(photo)
    return resize_mask(to_pixels(image, 32)[..., 0], image.size)


async def test_raw_body_gives_the_mask_of_the_photo(live: Live) -> None:
    answer = await live.client.post("/v1/mask", content=PHOTO)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    mask = opened(answer.content)
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), expected_mask(PHOTO))


@pytest.mark.parametrize("field", ["image", "file", "image_file"])
async def test_form_gives_the_same_as_the_raw_body(live: Live, field: str) -> None:
    answer = await live.client.post("/v1/mask", files={field: ("cat.png", PHOTO, "text/plain")})
    assert answer.status_code == 200
    assert np.array_equal(np.asarray(opened(answer.content)), expected_mask(PHOTO))


async def test_answers_carry_what_the_documentation_promises(live: Live) -> None:
    answer = await live.client.post("/v1/mask", content=PHOTO, headers={"X-Request-Id": "a-1"})
    assert answer.headers["x-request-id"] == "a-1"
    assert (answer.headers["x-width"], answer.headers["x-height"]) == ("96", "64")
    assert answer.headers["x-model-version"] == "fake@aaaaaaaaaaaa"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    timings = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert timings == ["receive", "decode", "queue", "infer", "encode"]
    left, top, right, bottom = map(int, answer.headers["x-foreground-box"].split(","))
    inside = expected_mask(PHOTO) >= 128
    rows, columns = np.nonzero(inside)
    assert (left, top) == (columns.min(), rows.min())
    assert (right, bottom) == (columns.max() + 1, rows.max() + 1)


async def test_the_box_is_in_displayed_coordinates_whatever_size_is_asked_for(live: Live) -> None:
    photo = encoded(scene(), "JPEG", exif=with_orientation(6))
    own = await live.client.post("/v1/mask", content=photo)
    model = await live.client.post("/v1/mask?size=model", content=photo)
    assert opened(own.content).size == (64, 96)
    assert opened(model.content).size == (32, 32)
    assert (model.headers["x-width"], model.headers["x-height"]) == ("64", "96")
    assert model.headers["x-foreground-box"] == own.headers["x-foreground-box"]


async def test_an_empty_mask_has_no_box(live: Live) -> None:
    black = encoded(scene().point(lambda _: 0))
    answer = await live.client.post("/v1/mask", content=black)
    assert answer.status_code == 200
    assert "x-foreground-box" not in answer.headers


async def test_cutout_is_the_photo_with_the_mask_as_alpha(live: Live) -> None:
    answer = await live.client.post("/v1/mask?output=cutout", content=PHOTO)
    cutout = opened(answer.content)
    assert cutout.mode == "RGBA"
    alpha = np.asarray(cutout)[..., 3]
    assert np.array_equal(alpha, expected_mask(PHOTO))
    shown = np.where(alpha[..., None] > 0, np.asarray(scene()), 0)
    assert np.array_equal(np.asarray(cutout)[..., :3], shown)


async def test_cutout_of_model_size_is_what_the_network_saw(live: Live) -> None:
    answer = await live.client.post("/v1/mask?output=cutout&size=model", content=PHOTO)
    cutout = np.asarray(opened(answer.content))
    shown = np.where(cutout[..., 3:] > 0, live.backend.seen[0], 0)
    assert np.array_equal(cutout[..., :3], shown)


async def test_cutout_keeps_the_transparency_of_its_photo(live: Live) -> None:
    photo = scene()
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    own = np.asarray(photo)[..., 3]
    data = encoded(photo)
    answer = await live.client.post("/v1/mask?output=cutout", content=data)
    cutout = np.asarray(opened(answer.content))
    assert np.array_equal(cutout[..., 3], np.minimum(own, expected_mask(data)))
    model = await live.client.post("/v1/mask?output=cutout&size=model", content=data)
    assert np.asarray(opened(model.content))[0, :, 3].max() < 16


@pytest.mark.parametrize(
    ("query", "accept", "media_type"),
    [
        ("", None, "image/png"),
        ("", "*/*", "image/png"),
        ("", "image/webp", "image/webp"),
        ("", "image/webp, */*;q=0.8", "image/webp"),
        ("", "image/png;q=0.5, image/WebP", "image/webp"),
        ("", "image/png, image/webp", "image/png"),
        ("", "image/avif,image/webp,image/*,*/*;q=0.8", "image/png"),
        ("", "image/webp;q=0", "image/png"),
        ("", "image/webp;q=much, ,;;", "image/png"),
        ("format=webp", "image/png", "image/webp"),
        ("format=png", "image/webp", "image/png"),
    ],
)
async def test_webp_is_answered_where_it_is_asked_for(
    live: Live, query: str, accept: str | None, media_type: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = await live.client.post(f"/v1/mask?{query}", content=PHOTO, headers=headers)
    assert answer.headers["content-type"] == media_type
    mask = opened(answer.content)
    assert mask.format == media_type.removeprefix("image/").upper()
    assert np.array_equal(np.asarray(mask.convert("L")), expected_mask(PHOTO))


async def test_a_photo_too_long_for_webp_is_refused_before_the_queue(live: Live) -> None:
    long = encoded(Image.new("RGB", (16_384, 2), "red"))
    answer = await live.client.post("/v1/mask?format=webp", content=long)
    assert (answer.status_code, answer.json()["code"]) == (422, "side_too_long")
    assert answer.json()["limit"] == 16_383
    assert not live.backend.seen
    answer = await live.client.post("/v1/mask?format=webp&size=model", content=long)
    assert answer.status_code == 200


async def test_a_photo_of_a_phone_gives_a_mask(live: Live) -> None:
    for photo in (heic(), encoded(scene(), "AVIF"), encoded(scene(), "MPO")):
        answer = await live.client.post("/v1/mask", content=photo)
        assert answer.status_code == 200
        assert np.array_equal(np.asarray(opened(answer.content)), expected_mask(photo))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"%PDF-1.7", "a PDF"),
        (b'{"image": "..."}', "JSON"),
        (base64.b64encode(PHOTO), "base64 text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (encoded(scene(), "TIFF"), "a TIFF image"),
    ],
)
async def test_what_is_not_taken_is_named(live: Live, body: bytes, name: str) -> None:
    answer = await live.client.post("/v1/mask", content=body)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")
    taken = "JPEG, PNG, WebP, AVIF and HEIC/HEIF"
    assert answer.json()["detail"] == f"It is {name}; taken are {taken} images."


async def test_the_settings_say_which_formats_are_taken(make_live: MakeLive) -> None:
    live = await make_live(formats="jpg, GIF,tif")
    for kind, status in (("GIF", 200), ("TIFF", 200), ("JPEG", 200), ("PNG", 415), ("BMP", 415)):
        answer = await live.client.post("/v1/mask", content=encoded(scene(), kind))
        assert answer.status_code == status, kind


async def test_threshold_makes_the_mask_black_and_white(live: Live) -> None:
    answer = await live.client.post("/v1/mask?threshold=200", content=PHOTO)
    mask = np.asarray(opened(answer.content))
    assert np.array_equal(mask, np.where(expected_mask(PHOTO) >= 200, 255, 0))


async def test_parameters_may_be_form_fields(live: Live) -> None:
    answer = await live.client.post(
        "/v1/mask", files={"image": PHOTO}, data={"output": "cutout", "threshold": "0"}
    )
    assert set(np.asarray(opened(answer.content))[..., 3].ravel()) == {255}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("output=png", "output"),
        ("size=big", "size"),
        ("format=jpeg", "format"),
        ("threshold=256", "threshold"),
        ("threshold=-1", "threshold"),
        ("threshold=+1", "threshold"),
        ("threshold=%2B1", "threshold"),
        ("threshold=1_0", "threshold"),
        ("threshold=%D9%A3", "threshold"),
        ("threshold=", "threshold"),
        ("threshold=1&threshold=2", "threshold"),
        ("colour=red", "colour"),
        ("colour=red&colour=blue", "colour"),
    ],
)
async def test_bad_parameters_are_named(live: Live, query: str, named: str) -> None:
    answer = await live.client.post(f"/v1/mask?{query}", content=PHOTO)
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_parameter"
    assert answer.json()["parameter"] == named


@pytest.mark.parametrize(
    ("query", "actual"),
    [("output=png", "png"), ("threshold=300", "300"), ("threshold=1_0", "1_0"), ("size=", "")],
)
async def test_a_bad_value_is_quoted_with_what_it_must_be(
    live: Live, query: str, actual: str
) -> None:
    problem = (await live.client.post(f"/v1/mask?{query}", content=PHOTO)).json()
    assert problem["actual"] == actual
    assert "must be" in problem["detail"]


async def test_form_fields_are_checked_like_parameters(live: Live) -> None:
    answer = await live.client.post("/v1/mask", files={"image": PHOTO}, data={"threshold": "+1"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "bad_parameter")
    assert (problem["parameter"], problem["actual"]) == ("threshold", "+1")


async def test_more_parameters_than_any_route_has_are_refused_unread(live: Live) -> None:
    names = "&".join(f"p{number}" for number in range(8000))
    answer = await live.client.post(f"/v1/mask?{names}", content=PHOTO)
    assert answer.status_code == 400
    assert answer.json()["detail"] == "There are more than 64 parameters."


async def test_a_parameter_in_query_and_form_is_given_twice(live: Live) -> None:
    answer = await live.client.post(
        "/v1/mask?threshold=1", files={"image": PHOTO}, data={"threshold": "1"}
    )
    assert (answer.status_code, answer.json()["parameter"]) == (400, "threshold")


async def test_an_unknown_form_field_is_refused_at_its_header(live: Live) -> None:
    answer = await live.client.post("/v1/mask", files={"other": PHOTO, "image": PHOTO})
    assert (answer.status_code, answer.json()["parameter"]) == (400, "other")


@pytest.mark.parametrize("value", ["0", "99", "60001", "1.5", "soon", "-5", "", "+500", "1_000"])
async def test_a_bad_timeout_is_named(live: Live, value: str) -> None:
    answer = await live.client.post("/v1/mask", content=PHOTO, headers={"X-Timeout-Ms": value})
    assert (answer.status_code, answer.json()["parameter"]) == (400, "X-Timeout-Ms")


async def test_a_timeout_is_given_once(live: Live) -> None:
    twice = [("X-Timeout-Ms", "5000"), ("X-Timeout-Ms", "200")]
    answer = await live.client.post("/v1/mask", content=PHOTO, headers=twice)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")
    assert "more than once" in answer.json()["detail"]


async def test_the_deadline_reaches_the_backend(live: Live) -> None:
    live.backend.gate.clear()
    answer = await live.client.post("/v1/mask", content=PHOTO, headers={"X-Timeout-Ms": "100"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"just some text", 415, "unsupported_media"),
        (b"GIF89a" + bytes(40), 415, "unsupported_media"),
        (encoded(scene(), "JPEG")[:-300], 422, "broken_image"),
        (encoded(scene())[:100], 422, "broken_image"),
        (b"\x89PNG\r\n\x1a\n", 422, "broken_image"),
    ],
)
async def test_what_is_no_image_is_refused_with_the_reason(
    live: Live, body: bytes, status: int, code: str
) -> None:
    answer = await live.client.post("/v1/mask", content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert live.backend.seen == []


async def test_a_content_encoding_is_refused(live: Live) -> None:
    answer = await live.client.post("/v1/mask", content=PHOTO, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (WorkerError("The worker ended twice."), "worker_failed"),
        (NonFiniteError("Not a number."), "non_finite"),
        (RuntimeError("secret"), "internal"),
    ],
)
async def test_failures_of_the_backend_are_500_and_disclose_nothing_private(
    live: Live, failure: Exception, code: str
) -> None:
    live.backend.failure = failure
    answer = await live.client.post("/v1/mask", content=PHOTO)
    assert (answer.status_code, answer.json()["code"]) == (500, code)
    assert "secret" not in answer.text
    assert live.sample("purnet_errors_total", code=code) == 1


async def test_images_being_decoded_are_announced_to_the_backend(live: Live) -> None:
    live.backend.gate.clear()
    answers = [asyncio.create_task(live.client.post("/v1/mask", content=PHOTO)) for _ in range(3)]
    for _ in answers:
        await live.backend.one_arrived()
    assert live.backend.upstream == 0
    live.backend.gate.set()
    assert [(await answer).status_code for answer in answers] == [200, 200, 200]
    await live.client.post("/v1/mask", content=PHOTO[:100])
    assert live.backend.upstream == 0


async def test_a_mask_request_keeps_no_upload_while_it_waits(make_live: MakeLive) -> None:
    live = await make_live()
    live.backend.gate.clear()
    mask = asyncio.create_task(live.client.post("/v1/mask", content=PHOTO))
    await live.backend.one_arrived()
    assert live.service.admission.bytes == 0
    cutout = asyncio.create_task(live.client.post("/v1/mask?output=cutout", content=PHOTO))
    await live.backend.one_arrived()
    assert live.service.admission.bytes == len(PHOTO)
    live.backend.gate.set()
    assert (await mask).status_code == (await cutout).status_code == 200
    await live.idle()
    assert (live.service.admission.bytes, live.service.answer_memory.reserved_bytes) == (0, 0)
