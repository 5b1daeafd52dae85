"""The Python client of a running service.

    from purnet_serve.client import PurNetClient

    with PurNetClient("http://127.0.0.1:8000") as client:
        client.mask("photo.jpg").save("mask.png")
        for outcome in client.many(paths, output="cutout", concurrency=8):
            print(outcome.photo, outcome.error or outcome.result.box)

`AsyncPurNetClient` is the same for asyncio. Both wait and ask again where the service says so, and
raise errors of one tree (`purnet_serve.client.errors`). Nothing here needs the service's own code.
"""

from purnet_serve.client.clients import AsyncPurNetClient, PurNetClient
from purnet_serve.client.errors import (
    ApiKeyError,
    BusyError,
    DeadlineError,
    NoAnswerError,
    PhotoError,
    PurNetError,
    RequestError,
    ServerError,
)
from purnet_serve.client.exchange import Options, Output, RetryPolicy
from purnet_serve.client.photos import Photo
from purnet_serve.client.result import Outcome, Result

__all__ = [
    "ApiKeyError",
    "AsyncPurNetClient",
    "BusyError",
    "DeadlineError",
    "NoAnswerError",
    "Options",
    "Outcome",
    "Output",
    "Photo",
    "PhotoError",
    "PurNetClient",
    "PurNetError",
    "RequestError",
    "Result",
    "RetryPolicy",
    "ServerError",
]
