"""An upload to its answer: decode, predict, encode. Every route that answers a mask calls it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from purnet_serve.errors import NotReadyError
from purnet_serve.http.context import ServiceContext
from purnet_serve.http.request import RequestContext
from purnet_serve.images import codec
from purnet_serve.images.header import check_header, decoding_bytes
from purnet_serve.inference.backend import ModelInfo
from purnet_serve.observability.labels import Stage


@dataclass(frozen=True, slots=True)
class PhotoAnswer:
    """The encoded mask or cutout of a photo, the photo's displayed size, and who answered."""

    body: bytes
    media_type: str
    box: codec.Box | None
    """Left, top, right, bottom of the foreground in displayed pixels, right and bottom excluded."""
    width: int
    """Pixels of the photo as displayed, whatever the size of the answer."""
    height: int
    model: ModelInfo


async def answer_photo(
    service: ServiceContext, context: RequestContext, image: bytes, options: codec.Options
) -> PhotoAnswer:
    """Answer an encoded image of an admitted request when it has a slot.

    What it took is added to `context`.

    From here on admission counts `len(image)` bytes for the upload, and none once it is decoded,
    unless the answer shows the photo's own pixels; so the caller must keep no reference to it (pass
    `upload.take()`). The memory of the answer is reserved until the request ends.

    Raises what docs/api.md lists for decoding, for the queue and for the deadline, and
    `RuntimeError` for a request that was not admitted: no limit would hold for it.
    """
    if not service.admission.holds(context):
        raise RuntimeError(f"{context.method} {context.path!r} was not admitted")
    service.admission.resize(context, len(image))
    async with service.scheduler.slot(context):
        decoded = await _decode(service, context, image)
        codec.check_answer_size(decoded, options)
        upload = image if options.needs_upload else None
        del image
        service.admission.resize(context, len(upload or b""))
        context.stage = Stage.QUEUE
        prediction = await service.backend.predict(decoded.pixels, deadline_s=context.deadline)
        queue_s = context.slot_wait_s + prediction.queue_s
        context.timings |= {Stage.QUEUE: queue_s, Stage.INFER: prediction.infer_s}
        context.batch_size = prediction.batch_size
        with context.enter_stage(Stage.ENCODE):
            memory = await service.answer_memory.reserve(_most_bytes(decoded, options))
            context.answer_memory = memory
            size = codec.encoding_bytes(decoded, options)
            arguments = prediction.mask, decoded, upload, options
            answer = await service.encode_pool.run_into(memory, size, codec.encode, *arguments)
            memory.resize(len(answer.body))
    return PhotoAnswer(
        body=answer.body,
        media_type=answer.media_type,
        box=answer.box,
        width=decoded.width,
        height=decoded.height,
        model=prediction.model,
    )


def answer_headers(answer: PhotoAnswer, context: RequestContext) -> dict[str, str]:
    """The headers of an answer that docs/api.md lists, but for those of every answer."""
    timings = [f"{stage};dur={s * 1000:.1f}" for stage, s in context.timings.items()]
    headers = {
        "Cache-Control": "no-store",
        "Server-Timing": ", ".join(timings),
        "X-Height": str(answer.height),
        "X-Model-Version": answer.model.version,
        "X-Width": str(answer.width),
    }
    if answer.box is not None:
        headers["X-Foreground-Box"] = ",".join(map(str, answer.box))
    return headers


def picture_response(answer: PhotoAnswer, context: RequestContext) -> Response:
    """The picture itself, with the headers that docs/api.md lists."""
    headers = answer_headers(answer, context)
    return Response(answer.body, media_type=answer.media_type, headers=headers)


async def _decode(service: ServiceContext, context: RequestContext, image: bytes) -> codec.Decoded:
    model, pool = service.backend.model, service.decode_pool
    if model is None:
        raise NotReadyError("Not ready: no model is loaded.")
    size, limits, reduced = model.input_size, service.limits, service.settings.reduced_jpeg
    service.backend.expect(1)
    try:
        with context.enter_stage(Stage.DECODE):
            decoded = await pool.run_measured(
                lambda: check_header(image, limits),
                decoding_bytes,
                lambda header: codec.decode(image, size, header, reduced_jpeg=reduced),
            )
    finally:
        service.backend.expect(-1)
    context.width, context.height = decoded.width, decoded.height
    return decoded


def _most_bytes(decoded: codec.Decoded, options: codec.Options) -> int:
    """Upper bound of an answer: its samples, stored, with 1 % for PNG's own and some headers."""
    samples = 4 if options.output == "cutout" else 1
    side = decoded.pixels.shape[0]
    size = decoded.width * decoded.height if options.size == "original" else side * side
    return samples * size * 101 // 100 + decoded.height + 4096
