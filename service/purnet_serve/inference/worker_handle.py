"""One worker process, as the service holds it: loaded once, sent batches, ended once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from purnet_serve.inference import protocol
from purnet_serve.inference import shared_memory as shared
from purnet_serve.inference.backend import Mask, ModelInfo, Throughput
from purnet_serve.inference.batcher import Batch
from purnet_serve.inference.spawn import Spawn, WorkerConnection, WorkerEndError
from purnet_serve.observability.labels import FailureKind
from purnet_serve.settings import Settings

log = logging.getLogger("purnet_serve.inference")

M = TypeVar("M")

OnAnswer = Callable[[Batch, protocol.Done | protocol.OutOfMemory, Mask], None]
"""Called with a batch, its answer, and masks (N, S, S) in shared memory, valid during the call."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything it takes to bring up one worker, the first time or again."""

    settings: Settings
    factory: str
    """`module:attribute` of what makes the predictor."""
    device: str
    threads: int
    spawn: Spawn


@dataclass(eq=False, slots=True)
class _Sent:
    """A batch that was sent and not answered."""

    buffer: int
    batch: Batch
    watchdog: asyncio.TimerHandle | None = None
    """Runs from when the device could begin with it; None before."""
    ran_concurrently: bool = False
    """Whether another batch ran at the same time, on another stream."""


class Worker:
    """A worker that is loaded, checked and warm. Made by `load`, ended by `serve` or `stop`."""

    def __init__(
        self,
        connection: WorkerConnection,
        info: ModelInfo,
        batches: shared.SharedBatches,
        ready: protocol.Ready,
        watchdog_s: float,
        *,
        has_streams: bool,
    ) -> None:
        self.info = info
        self.has_streams = has_streams
        """Whether its engine has several streams, however many of them its warm-up fitted."""
        self.streams = ready.streams
        """Batches that run at the same time."""
        self.max_batch = ready.sizes[-1]
        """Images of the largest batch that is worth its latency."""
        self.throughput = Throughput(
            latency_s=ready.seconds[0],
            interval_s=ready.seconds[-1] / (ready.sizes[-1] * ready.streams),
            concurrency=ready.sizes[-1] * (ready.streams if has_streams else batches.buffers),
        )
        """As measured by its warm-up."""
        self.resident_bytes = ready.resident_bytes
        self.device_bytes = ready.device_bytes
        self._watchdog_s = watchdog_s
        self.connection = connection
        self._shared = batches
        self._in_flight: dict[int, _Sent] = {}
        """By number, in the order in which they were sent."""
        self._free_buffers = list(range(batches.buffers))
        self._last_number = 0
        self._ending = False
        """Set by a kill, or once the pipe is closed: no batch can be run any more."""
        self._cause: WorkerEndError | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def in_flight(self) -> tuple[Batch, ...]:
        """Batches sent and not answered, oldest first."""
        return tuple(sent.batch for sent in self._in_flight.values())

    @property
    def running(self) -> tuple[Batch, ...]:
        """Those of them that the device works on: at most one a stream."""
        return tuple(sent.batch for sent in self._in_flight.values() if sent.watchdog is not None)

    @property
    def can_accept(self) -> bool:
        """Whether a buffer is free, and the process is there to run what is put into it."""
        return bool(self._free_buffers) and not self._ending and not self.connection.closed

    def run(self, batch: Batch) -> None:
        """Send a batch; needs `can_accept`."""
        buffer = self._free_buffers[-1]
        for slot, ticket in enumerate(batch.tickets):
            self._shared.put(buffer, slot, ticket.pixels)
        self._free_buffers.pop()
        self._last_number += 1
        self._in_flight[self._last_number] = _Sent(buffer, batch)
        self._begin_next()
        self.connection.send(protocol.Run(self._last_number, buffer, len(batch)))

    def kill(self, failure: FailureKind, detail: str, traceback: str = "") -> None:
        """End the process now. The first reason given is the one that `serve` returns."""
        self._ending = True
        if self._cause is None:
            self._cause = WorkerEndError(failure, detail, traceback)
        self.connection.kill()

    async def serve(self, on_answer: OnAnswer) -> WorkerEndError:
        """Give every answer to `on_answer` until the worker ends and is reaped.

        Returns how it ended. Cancelling this does not end the worker: `stop` does.
        """
        try:
            while (message := await self.connection.receive()) is not None:
                self._handle(message, on_answer)
        except (protocol.ProtocolError, OSError) as error:
            self.kill(FailureKind.PROTOCOL, f"The worker broke the protocol: {error}")
        except Exception as error:
            # A fault of ours; the tickets of this batch still need their answers.
            log.exception("answer mishandled", extra={"device": self.info.device})
            self.kill(FailureKind.PROTOCOL, f"An answer was mishandled: {error!r}")
        return await self._end()

    def stop(self) -> asyncio.Task[WorkerEndError]:
        """Close the pipe, so that the process exits; the task ends when it is reaped."""
        self.connection.close_pipe()
        return self._loop.create_task(self._end())

    async def _end(self) -> WorkerEndError:
        self._ending = True
        for sent in self._in_flight.values():
            if sent.watchdog is not None:
                sent.watchdog.cancel()
        end = await self.connection.reap()
        self._shared.close()
        return self._cause or end

    def _handle(self, message: protocol.Message, on_answer: OnAnswer) -> None:
        if isinstance(message, protocol.EngineFailed):
            self.kill(FailureKind.EXCEPTION, message.detail, message.traceback)
            return
        if not isinstance(message, protocol.Done | protocol.OutOfMemory):
            raise protocol.ProtocolError(f"unexpected {type(message).__name__}")
        sent = self._in_flight.get(message.number)
        if sent is None or sent.watchdog is None:
            raise protocol.ProtocolError(f"batch {message.number} answered, which does not run")
        batch = sent.batch
        if (
            isinstance(message, protocol.OutOfMemory)
            and len(batch) == 1
            and not sent.ran_concurrently
        ):
            # Nothing smaller can be tried. A fresh process has all of the device's memory.
            detail = "The device has no room for a single image."
            self.kill(FailureKind.OUT_OF_MEMORY, detail)
            return
        if isinstance(message, protocol.Done):
            if len(message.finite) != len(batch):
                raise protocol.ProtocolError(f"{len(message.finite)} masks for {len(batch)} images")
            self.resident_bytes = message.resident_bytes
            self.device_bytes = message.device_bytes
        sent.watchdog.cancel()
        del self._in_flight[message.number]
        self._free_buffers.append(sent.buffer)
        self._begin_next()
        try:
            on_answer(batch, message, self._shared.masks[sent.buffer, : len(batch)])
        except Exception:
            # Whoever in it has no answer yet still needs one.
            self._in_flight[message.number] = sent
            raise

    def _begin_next(self) -> None:
        """The oldest batches, one a stream, are those the device works on: their time starts."""
        running = list(islice(self._in_flight.values(), self.streams))
        for sent in running:
            sent.ran_concurrently |= len(running) > 1
            if sent.watchdog is None:
                sent.batch.started_s = self._loop.time()
                detail = f"No answer for {self._watchdog_s:.1f} s."
                sent.watchdog = self._loop.call_later(
                    self._watchdog_s, self.kill, FailureKind.HANG, detail
                )


async def load(spec: WorkerSpec, *, expected: ModelInfo | None = None) -> Worker:
    """Bring up a worker: load, check, share memory, warm up. Raises `WorkerEndError`.

    A model other than `expected` is refused. Leaves nothing behind when it fails or is cancelled.
    """
    with contextlib.ExitStack() as stack:
        try:
            segment_fd = shared.create()
            stack.callback(os.close, segment_fd)
            connection = await spec.spawn(segment_fd, spec.threads)
        except (OSError, RuntimeError) as error:
            # No process, descriptor, memory or thread can be had now; there may be later.
            detail = f"The worker could not be started: {error}"
            raise WorkerEndError(FailureKind.EXIT, detail) from error
        try:
            return await _load_or_kill(spec, connection, segment_fd, expected)
        except WorkerEndError:
            raise
        except TimeoutError as error:
            detail = f"The model did not load within {spec.settings.load_timeout_s:.0f} s."
            raise WorkerEndError(FailureKind.HANG, detail) from error
        except (protocol.ProtocolError, OSError) as error:
            raise WorkerEndError(FailureKind.PROTOCOL, str(error)) from error
        except Exception as error:
            # A fault of ours: it ends this attempt and not the supervisor.
            log.exception("loading mishandled", extra={"device": spec.device})
            detail = f"Loading went wrong: {error!r}"
            raise WorkerEndError(FailureKind.PROTOCOL, detail) from error


def check_version(found: ModelInfo, expected: ModelInfo | None) -> None:
    """Raise `WorkerEndError` for a model other than `expected`; None takes any."""
    if expected is not None and found.sha256 != expected.sha256:
        detail = (
            f"The checkpoint file is no longer {expected.version} but {found.version}: reload to "
            "take it."
        )
        raise WorkerEndError(FailureKind.REFUSED, detail)


async def _load_or_kill(
    spec: WorkerSpec, connection: WorkerConnection, segment_fd: int, expected: ModelInfo | None
) -> Worker:
    """`_load_and_warm_up` in time; no process is left where it fails or is cancelled."""
    try:
        async with asyncio.timeout(spec.settings.load_timeout_s):
            return await _load_and_warm_up(spec, connection, segment_fd, expected)
    except BaseException:
        connection.kill()
        await connection.reap()
        raise


async def _load_and_warm_up(
    spec: WorkerSpec, connection: WorkerConnection, segment_fd: int, expected: ModelInfo | None
) -> Worker:
    settings = spec.settings
    checkpoint = None if settings.checkpoint is None else str(settings.checkpoint)
    connection.send(protocol.Load(spec.factory, checkpoint, spec.device, spec.threads))
    loaded = await _receive(protocol.Loaded, connection)
    # `cuda` is any GPU, and `auto` any device; one with a number is that one.
    if spec.device not in ("auto", loaded.device, _kind(loaded.device)):
        detail = f"The model was asked onto {spec.device} and came up on {loaded.device}."
        raise WorkerEndError(FailureKind.REFUSED, detail)
    info = ModelInfo(loaded.name, loaded.sha256, loaded.input_size, loaded.device, loaded.engine)
    check_version(info, expected)
    # A second batch in flight hides the round trip from a fast device. On a CPU it would only
    # commit tickets early: the device is the processor that would prepare them.
    buffers, most = 2 if _kind(loaded.device) == "cuda" else 1, settings.max_batch
    has_streams = loaded.streams > 1
    if has_streams:
        buffers, most = loaded.streams, 1
    size = {"buffers": buffers, "max_batch": most, "input_size": info.input_size}
    try:
        shared.reserve(segment_fd, **size)
    except MemoryError as error:
        raise WorkerEndError(FailureKind.REFUSED, str(error)) from error
    connection.send(protocol.Warmup(**size))
    ready = await _receive(protocol.Ready, connection)
    batches = shared.SharedBatches(segment_fd, **size)
    watchdog_s = settings.watchdog_s or max(5.0, 20 * max(ready.seconds))
    return Worker(connection, info, batches, ready, watchdog_s, has_streams=has_streams)


async def _receive(kind: type[M], connection: WorkerConnection) -> M:
    """The next message, of this kind. Raises `WorkerEndError` or `ProtocolError` for any other."""
    message = await connection.receive()
    if isinstance(message, kind):
        return message
    if message is None:
        raise await connection.reap()
    if isinstance(message, protocol.LoadFailed):
        raise WorkerEndError(FailureKind.REFUSED, message.detail, message.traceback)
    raise protocol.ProtocolError(f"unexpected {type(message).__name__}")


def _kind(device: str) -> str:
    return device.partition(":")[0]
