"""One image, sent to one model replica after another until one answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from purnet_serve.errors import DrainingError, NotReadyError, ServiceError, WorkerError
from purnet_serve.inference.backend import Prediction
from purnet_serve.inference.ray.messages import OtherVersionError, unpack_answer
from purnet_serve.inference.ray.tier import ModelTier, NoReplicaError, ReplicaLostError

log = logging.getLogger("purnet_serve.inference.ray")

MAX_TRIES = 3
"""Of one image, each on a replica that ended or cannot take it. An image may be what ends them."""
RETRY_BACKOFF_S = 0.05
"""Before the second try of an image that a replica gave back; twice as long before the third."""


async def predict_with_retries(
    tier: ModelTier,
    pixels: bytes,
    *,
    deadline_s: float,
    on_change: Callable[[], None],
) -> Prediction:
    """The mask of (S, S, 3) uint8 pixels, by the first replica that answers.

    `deadline_s` is on the loop's clock; the caller keeps it. `on_change` is called whenever what
    happens says that the replicas are others than before. An image whose replica was lost is sent
    again at once, one that a replica gave back a moment later. Raises `WorkerError` when every try
    lost its replica, `NotReadyError` or `DrainingError` when no replica takes the image, any other
    error that a replica answers, and `TierFullError`.
    """
    loop = asyncio.get_running_loop()
    lost = 0
    refusal: ServiceError | None = None
    for number in range(1, MAX_TRIES + 1):
        try:
            answer = unpack_answer(await tier.predict(deadline_s - loop.time(), pixels))
        except ReplicaLostError as error:
            on_change()
            log.warning("replica lost", extra={"reason": str(error), "tries": number})
            lost += 1
            refusal = None
            continue
        except NoReplicaError as error:
            on_change()
            raise NotReadyError("There is no model replica now.") from error
        except OtherVersionError as error:
            answer = NotReadyError(str(error))
        if isinstance(answer, Prediction):
            return answer
        if not isinstance(answer, NotReadyError | DrainingError):
            raise answer
        on_change()
        refusal = answer
        if number < MAX_TRIES:
            await asyncio.sleep(RETRY_BACKOFF_S * number)
    if lost == MAX_TRIES:
        raise WorkerError(f"{MAX_TRIES} replicas were lost with this image.")
    raise refusal or NotReadyError("Replicas end faster than they take this image.")
