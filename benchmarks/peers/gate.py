"""Every peer's masks must be ours before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import numpy as np
from benchmarks.peers.results import Gate
from benchmarks.peers.server import Server
from PIL import Image

from purnet.imaging import UInt8Array

AT_ONCE = 10
MAX_MEAN = 1.0
"""Levels of 255 that a mask may differ from ours on average, each mask by itself."""


def check(server: Server, photos: list[bytes], wanted: list[UInt8Array]) -> Gate:
    """Ask one by one and several at once: in batches too, each client gets its own mask.

    Raises `SystemExit` for a peer that does not pass. One with another network need only answer
    masks of the right sizes.
    """
    got = masks_of(server, photos, at_once=1) + masks_of(server, photos, at_once=AT_ONCE)
    try:
        return compare(got, [*wanted, *wanted], same_network=server.peer.same_network)
    except ValueError as error:
        raise SystemExit(f"{server.peer.name} does not pass the gate: {error}") from None


def masks_of(server: Server, photos: list[bytes], *, at_once: int) -> list[UInt8Array]:
    """Masks in the order of the photos."""
    with ThreadPoolExecutor(at_once) as pool:
        return [_mask(server, answer) for answer in pool.map(server.post, photos)]


def compare(got: Sequence[UInt8Array], wanted: Sequence[UInt8Array], *, same_network: bool) -> Gate:
    """How far masks (H, W) are apart. Raises `ValueError` where it is too far."""
    for mask, ours in zip(got, wanted, strict=True):
        if mask.shape != ours.shape:
            raise ValueError(f"a mask is {mask.shape}, ours {ours.shape}")
    if not same_network:
        return Gate(masks=len(got))
    apart = [np.abs(mask.astype(np.int16) - ours) for mask, ours in zip(got, wanted, strict=True)]
    worst_mean = max(float(each.mean()) for each in apart)
    if worst_mean > MAX_MEAN:
        raise ValueError(f"a mask differs from ours by {worst_mean:.2f}/255 on average")
    return Gate(
        masks=len(got),
        identical=sum(not each.any() for each in apart),
        worst_mean=worst_mean,
        worst_pixel=max(int(each.max()) for each in apart),
    )


def _mask(server: Server, answer: httpx.Response) -> UInt8Array:
    if answer.status_code != httpx.codes.OK:
        raise SystemExit(f"{server.peer.name}: {answer.status_code} {answer.text[:200]}")
    with Image.open(BytesIO(answer.content)) as image:
        if (image.format, image.mode) != ("PNG", "L"):
            raise SystemExit(f"{server.peer.name} answers {image.format} {image.mode}")
        return np.array(image)
