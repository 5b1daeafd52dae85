"""What a photo is answered with."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from purnet_serve.client.errors import PurNetError, ServerError
from purnet_serve.client.photos import Photo

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Result:
    """A mask or a cutout, and what the service says of it."""

    data: bytes
    """The encoded picture: PNG, or WebP where that was asked for."""
    media_type: str
    """`image/png` or `image/webp`."""
    width: int
    """Pixels of the photo as displayed, whatever the size of the picture."""
    height: int
    box: Box | None
    """Left, top, right, bottom of the object in the photo as displayed, right and bottom excluded;
    None when nothing stands out."""
    model: str
    """Variant and first digits of the sha256 of the weights that answered."""
    timings_ms: dict[str, float]
    """Milliseconds of each stage in the service: receive, decode, queue, infer, encode."""
    request_id: str
    """In the service's log."""

    def image(self) -> Image.Image:
        """The picture decoded: mode `L` for a mask, `RGBA` for a cutout."""
        from PIL import Image

        with Image.open(BytesIO(self.data)) as image:
            image.load()
            return image

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the encoded picture. Raises `OSError`."""
        Path(path).write_bytes(self.data)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one photo of many: `result`, or `error`."""

    photo: Photo
    result: Result | None
    error: PurNetError | None


_TIMING = re.compile(r"(?:^|,)\s*([\w-]+);dur=(\d+(?:\.\d+)?)\s*(?=,|$)")


def read_result(answer: httpx.Response) -> Result:
    """Read a 200. Raises `ServerError` for one that PurNet Serve did not give."""
    headers, media_type = answer.headers, answer.headers.get("content-type", "")
    box = headers.get("x-foreground-box")
    try:
        if not media_type.startswith("image/"):
            raise ValueError(media_type)
        return Result(
            data=answer.content,
            media_type=media_type,
            width=int(headers["x-width"]),
            height=int(headers["x-height"]),
            box=None if box is None else _box(box),
            model=headers["x-model-version"],
            timings_ms=_timings(headers.get("server-timing", "")),
            request_id=headers["x-request-id"],
        )
    except (KeyError, ValueError) as error:
        raise not_purnet(answer) from error


def not_purnet(answer: httpx.Response) -> ServerError:
    """The error for an answer of something else."""
    detail = f"What answers at {answer.url.copy_with(query=None)} is not PurNet Serve."
    return ServerError(detail, code="no_purnet", status=answer.status_code)


def _box(text: str) -> Box:
    left, top, right, bottom = map(int, text.split(","))
    return left, top, right, bottom


def _timings(text: str) -> dict[str, float]:
    # A proxy may have added entries of its own, of any form that `Server-Timing` allows.
    return {stage: float(ms) for stage, ms in _TIMING.findall(text)}
