"""`POST /v1/mask`: a photo in, its mask or cutout out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Request
from starlette.responses import Response

from purnet_serve.errors import DeadlineError, NotReadyError
from purnet_serve.http.admission import Lease
from purnet_serve.http.context import Door
from purnet_serve.http.openapi import mask_operation
from purnet_serve.http.options import parse_options
from purnet_serve.http.request import LEASE_KEY, exchange_of
from purnet_serve.http.upload import read_upload
from purnet_serve.images.codec import (
    Answer,
    Decoded,
    Options,
    check_header,
    decode,
    decoding_bytes,
    encode,
    encoding_bytes,
)
from purnet_serve.inference.backend import ModelInfo, Prediction
from purnet_serve.observability.labels import Stage


def router(door: Door) -> APIRouter:
    """The route, over what it shares with the guard."""
    routes = APIRouter()

    async def mask(request: Request) -> Response:
        return await _Visit(door, request).answer()

    routes.add_api_route(
        "/v1/mask",
        mask,
        methods=["POST"],
        response_class=Response,
        openapi_extra=mask_operation(door.settings),
    )
    return routes


class _Visit:
    """One request on its way through decode pool, backend and encode pool."""

    def __init__(self, door: Door, request: Request) -> None:
        self._door = door
        self._request = request
        self._exchange = exchange_of(request.scope)
        self._lease: Lease = request.scope[LEASE_KEY]

    async def answer(self) -> Response:
        """The whole way. Raises what docs/api.md lists."""
        query = self._request.query_params.multi_items()
        options = parse_options(query)  # a bad one is told before the body is read
        content_type = self._request.headers.get("content-type", "")
        upload = await read_upload(self._request.stream(), content_type)
        if upload.fields:
            options = parse_options([*query, *upload.fields])
        decoded = await self._decode(upload.image)
        kept = upload.image if options.needs_upload else None
        del upload
        self._lease.resize(len(kept or b""))
        prediction = await self._predict(decoded)
        answer = await self._encode(prediction, decoded, kept, options)
        return Response(
            answer.body,
            media_type="image/png",
            headers=self._headers(answer, decoded, prediction.model),
        )

    async def _decode(self, image: bytes) -> Decoded:
        door = self._door
        model = door.backend.model
        if model is None:
            raise NotReadyError("Not ready: no model is loaded.")
        self._lease.resize(len(image))
        door.backend.expect(1)
        try:
            async with self._stage(Stage.DECODE):
                header = await door.decoding.run(0, check_header, image, door.limits)
                decoded = await door.decoding.run(
                    decoding_bytes(header),
                    decode,
                    image,
                    model.input_size,
                    door.limits,
                    reduced_jpeg=door.settings.reduced_jpeg,
                )
        finally:
            door.backend.expect(-1)
        self._exchange.width, self._exchange.height = decoded.width, decoded.height
        return decoded

    async def _predict(self, decoded: Decoded) -> Prediction:
        exchange = self._exchange
        exchange.stage = Stage.QUEUE
        prediction = await self._door.backend.predict(decoded.pixels, deadline_s=exchange.deadline)
        exchange.timings[Stage.QUEUE] = prediction.queue_s
        exchange.timings[Stage.INFER] = prediction.infer_s
        exchange.batch_size = prediction.batch_size
        return prediction

    async def _encode(
        self, prediction: Prediction, decoded: Decoded, kept: bytes | None, options: Options
    ) -> Answer:
        door = self._door
        async with self._stage(Stage.ENCODE):
            room = await door.answers.reserve(_most_bytes(decoded, options))
            self._lease.answer = room
            answer = await door.encoding.run(
                encoding_bytes(decoded, options), encode, prediction.mask, decoded, kept, options
            )
            room.resize(len(answer.body))
        return answer

    @asynccontextmanager
    async def _stage(self, stage: Stage) -> AsyncIterator[None]:
        """Time a stage and end it at the deadline with `DeadlineError`."""
        exchange = self._exchange
        exchange.stage = stage
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout_at(exchange.deadline):
                yield
        except TimeoutError:
            allowed = round(exchange.deadline - exchange.arrived, 3)
            raise DeadlineError(
                f"The request's {allowed} s were over at stage '{stage}'.", limit=allowed
            ) from None
        exchange.timings[stage] = loop.time() - started

    def _headers(self, answer: Answer, decoded: Decoded, model: ModelInfo) -> dict[str, str]:
        timings = self._exchange.timings.items()
        headers = {
            "Cache-Control": "no-store",
            "Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in timings),
            "X-Height": str(decoded.height),
            "X-Model-Version": model.version,
            "X-Width": str(decoded.width),
        }
        if answer.box is not None:
            headers["X-Foreground-Box"] = ",".join(map(str, answer.box))
        return headers


def _most_bytes(decoded: Decoded, options: Options) -> int:
    """Upper bound of an answer: its samples, stored, with 1 % for PNG's own and some headers."""
    samples = 4 if options.output == "cutout" else 1
    side = decoded.pixels.shape[0]
    size = decoded.width * decoded.height if options.size == "original" else side * side
    return samples * size * 101 // 100 + decoded.height + 4096
