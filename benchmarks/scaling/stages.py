"""Processor time of one photo, by stage: what a plan on paper is made of.

HTTP is what the API process of a real service takes beside its codec, before an engine that costs
nothing, as `benchmarks.overhead` measures it. Codec and network are called as the service calls
them, the network with a stream an image.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from statistics import fmean

import numpy as np
from benchmarks.overhead import INPUT_SIZE, SAMPLE, send, started
from benchmarks.scaling.results import Stages
from PIL import Image

from purnet.inference.openvino_engine import DEFAULT_EXPORT, OpenVinoEngine, load
from purnet_serve.images.codec import Options, decode, encode
from purnet_serve.images.header import Limits, check_header

SIZES = ((640, 480), (1920, 1080), (4000, 3000))
CLIENTS = 2
_LIMITS = Limits(max_pixels=16_000_000, max_side=8_000)
_GRAIN = 5.0
"""Standard deviation in levels: a camera's noise, without which the file is small."""


def photo(width: int, height: int) -> bytes:
    """The shipped photo as a JPEG of this size, with grain."""
    with Image.open(SAMPLE) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, _GRAIN, (height, width, 1))
    levels = np.clip(np.asarray(resized) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(levels).save(out := BytesIO(), "JPEG", quality=90)
    return out.getvalue()


def measure(photos: int, rounds: int) -> Iterator[Stages]:
    """`photos` of each size in each round; the round in which a stage took least counts."""
    engine = load(DEFAULT_EXPORT, threads=1)
    uploads = {size: photo(*size) for size in SIZES}
    with started() as (url, times):
        for size, upload in uploads.items():
            call = partial(answer, upload, engine)
            device_ms, codec_ms = call()[:2]  # caches fill
            http_ms = float("inf")
            for _ in range(rounds):
                process_s, codec_s = times()
                asyncio.run(send(url, [upload], photos, CLIENTS))
                after_s = times()
                used_s = (after_s[0] - process_s) - (after_s[1] - codec_s)
                http_ms = min(http_ms, used_s / photos * 1000)
                each = [call() for _ in range(photos)]
                device_ms = min(device_ms, fmean(took[0] for took in each))
                codec_ms = min(codec_ms, fmean(took[1] for took in each))
            name, answered = f"{size[0]} x {size[1]}", call()[2]
            yield Stages(name, http_ms, codec_ms, device_ms, len(upload), len(answered))


def answer(upload: bytes, engine: OpenVinoEngine) -> tuple[float, float, bytes]:
    """Milliseconds of one processor in the network and in the codec, and the PNG of the mask."""
    began_s = time.process_time()
    header = check_header(upload, _LIMITS)
    decoded = decode(upload, INPUT_SIZE, header)
    decoded_s = time.process_time()
    (mask,) = engine(decoded.pixels[np.newaxis]).masks
    computed_s = time.process_time()
    body = encode(mask, decoded, None, Options()).body
    ended_s = time.process_time()
    device_s = computed_s - decoded_s
    return device_s * 1000, (ended_s - began_s - device_s) * 1000, body
