"""`purnet predict`, which can also send the photos to a running service: `--url`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from purnet.cli.predict import (
    STANDARD,
    Answer,
    Checkpoint,
    Device,
    Out,
    Overwrite,
    Photos,
    Recursive,
    Resume,
    WithCutout,
    answers_here,
    run,
)
from purnet.errors import ModelError

CONCURRENCY = 8
"""Photos sent at the same time: more than a worker takes to be busy, far fewer than a service
admits."""
TIMEOUT_S = 120.0
RETRIES = 100
"""For one photo: a folder has time, and may find the service busy with others."""
CHECK_TIMEOUT_S = 10.0


def predict(
    photos: Photos,
    out: Out = None,
    *,
    with_cutout: WithCutout = False,
    recursive: Recursive = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send the photos to the service that listens there."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="PURNET_API_KEY", help="API key for --url, if the service asks."),
    ] = None,
) -> None:
    """Find the salient object in photos: writes OUT/STEM.png for each, of the photo's own size.

    A mask is 8-bit grey, 255 where the object is. Fails before any work where an output exists,
    unless --resume or --overwrite is given; a photo is never overwritten. Files in a folder that
    are no photos are listed. Exits 1 when a photo could not be read; it is named and the rest is
    done.
    Photos are computed here, or with --url by a running service.
    """
    if url is None:
        answers = answers_here(checkpoint, device=device, with_cutout=with_cutout)
    elif checkpoint is not None or device != "auto":
        raise typer.BadParameter("--checkpoint and --device are the service's, not for --url.")
    else:

        def answers(sources: Sequence[Path]) -> Iterator[Answer]:
            return answers_of(url, sources, api_key=api_key, with_cutout=with_cutout)

    run(photos, out, answers, recursive=recursive, resume=resume, overwrite=overwrite)


def answers_of(
    url: str, sources: Sequence[Path], *, api_key: str | None, with_cutout: bool
) -> Iterator[Answer]:
    """What a running service answers for each photo, in order.

    Raises `ModelError` when the service cannot be asked at all, or not any more.
    """
    from purnet_serve.client import (
        ApiKeyError,
        NoAnswerError,
        Output,
        PurNetClient,
        PurNetError,
        RetryPolicy,
    )

    try:
        check = RetryPolicy(timeout_s=CHECK_TIMEOUT_S, retries=0)
        with PurNetClient(url, api_key=api_key, retries=check) as client:
            client.model()
    except ValueError as error:
        raise ModelError(f"--url: {error}") from error
    except PurNetError as error:
        raise ModelError(f"{url}: {error}") from error
    photos = (sys.stdin.buffer.read() if source == STANDARD else source for source in sources)
    patient = RetryPolicy(timeout_s=TIMEOUT_S, retries=RETRIES)
    with PurNetClient(url, api_key=api_key, retries=patient) as client:
        output: Output = "cutout" if with_cutout else "mask"
        for outcome in client.many(photos, output=output, concurrency=CONCURRENCY):
            if outcome.result is not None:
                yield outcome.result.data
            elif isinstance(outcome.error, ApiKeyError | NoAnswerError):
                raise ModelError(f"{url}: {outcome.error}; --resume goes on from here")
            elif outcome.error is not None:
                yield outcome.error
