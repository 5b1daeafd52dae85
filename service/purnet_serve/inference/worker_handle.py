"""One incarnation of a worker, as the service holds it: loaded once, fed batches, ended once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from purnet_serve.inference import shared_memory as shared
from purnet_serve.inference.backend import Mask, ModelInfo
from purnet_serve.inference.batcher import Batch
from purnet_serve.inference.protocol import (
    Attach,
    Done,
    Fault,
    Load,
    Loaded,
    Message,
    OutOfMemory,
    ProtocolError,
    Ready,
    Refused,
    Run,
    decode,
    encode,
)
from purnet_serve.inference.spawn import Launch, Link, thread_environment
from purnet_serve.observability.labels import FailureKind

log = logging.getLogger("purnet_serve.inference")

PARTING_S = 1.0
"""How long a worker whose pipe closed may take to be gone before it counts as a lost pipe."""
REAP_S = 5.0
"""How long a killed process may take to be reaped. One stuck in a driver cannot be, until the
driver lets go of it; its memory is its own, so its successor need not wait for that."""


class WorkerEndError(Exception):
    """A worker is gone, or never came up."""

    def __init__(self, failure: FailureKind, detail: str, trace: str = "") -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail
        self.trace = trace


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything it takes to bring up one worker, the first time or again."""

    factory: str
    checkpoint: Path | None
    device: str
    max_batch: int
    threads: int
    load_timeout_s: float
    watchdog_s: float | None
    """Longest time of a batch; None: max(5 s, 20 times the slowest batch of the warm-up)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker holds, in bytes."""

    resident: int
    device: int


class Owner(Protocol):
    """Who decides what a worker's answers mean."""

    def done(self, batch: Batch, answer: Done, masks: Mask) -> None:
        """`masks` is (N, S, S) in shared memory, valid during this call only."""
        ...

    def out_of_memory(self, batch: Batch) -> None:
        """The batch, of more than one image, did not fit; the worker goes on."""
        ...

    def lost(self, end: WorkerEndError, unfinished: tuple[Batch, ...]) -> None:
        """The worker is gone. The first of `unfinished` was running, the others had not begun."""
        ...


class Worker:
    """A worker that is loaded, checked and warm. Made by `load`; `owner` is told what happens."""

    owner: Owner | None = None

    def __init__(
        self,
        link: Link,
        info: ModelInfo,
        batches: shared.SharedBatches,
        ready: Ready,
        limit_s: float,
    ) -> None:
        self.info = info
        self.max_batch = ready.max_batch
        self.memory = Memory(ready.resident_bytes, ready.device_bytes)
        self.watchdog_s = limit_s
        self._link = link
        self._shared = batches
        self._running: deque[tuple[int, int, Batch]] = deque()
        self._free_banks = list(range(batches.banks))
        self._sent = 0
        self._ending = False
        """From the kill, or the last thing heard of it: there is nobody to run anything more."""
        self._cause: WorkerEndError | None = None
        self._loop = asyncio.get_running_loop()
        self._watchdog: asyncio.TimerHandle | None = None
        self._listener = self._loop.create_task(self._listen())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._link.process.pid

    @property
    def batches(self) -> int:
        """Batches sent and not answered."""
        return len(self._running)

    @property
    def accepts(self) -> bool:
        """Whether there is a free bank, and somebody to run what is put into it."""
        return bool(self._free_banks) and not self._ending

    def run(self, batch: Batch) -> None:
        """Send a batch; needs `accepts`. The answer goes to the owner."""
        bank = self._free_banks.pop()
        for slot, ticket in enumerate(batch.tickets):
            self._shared.pixels[bank, slot] = ticket.pixels
        self._sent += 1
        self._running.append((self._sent, bank, batch))
        if len(self._running) == 1:
            self._begin_first()
        self._link.write(encode(Run(self._sent, bank, len(batch))))

    def kill(self, failure: FailureKind, detail: str, trace: str = "") -> None:
        """End the process now; the owner is told when it is gone."""
        self._ending = True
        if self._cause is None:
            self._cause = WorkerEndError(failure, detail, trace)
        _kill(self._link)

    def dismiss(self) -> None:
        """Send off a worker that nobody needs any more; its owner hears no more of it."""
        self.owner = None
        self._link.hang_up()

    async def gone(self) -> None:
        """Wait until the process has ended and is reaped."""
        await asyncio.wait([self._listener])

    def when_gone(self, call: Callable[[Worker], None]) -> None:
        """Have `call` called once the process has ended and is reaped."""
        self._listener.add_done_callback(lambda _: call(self))

    async def _listen(self) -> None:
        """Read answers until there are none, then reap and report. Must not end before that."""
        try:
            while (message := await _receive(self._link)) is not None:
                self._answered(message)
        except (ProtocolError, OSError) as error:
            self.kill(FailureKind.PROTOCOL, f"The worker broke the protocol: {error}")
        except Exception as error:
            # Whatever is wrong here is ours, and the tickets still need their answers.
            log.exception("answer mishandled", extra={"device": self.info.device})
            self.kill(FailureKind.PROTOCOL, f"An answer was mishandled: {error!r}")
        self._ending = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        ended = await _end(self._link)
        end = self._cause or ended
        unfinished = tuple(batch for _, _, batch in self._running)
        self._running.clear()
        self._shared.close()
        if self.owner is not None:
            self.owner.lost(end, unfinished)

    def _answered(self, message: Message) -> None:
        if isinstance(message, Fault):
            self.kill(FailureKind.EXCEPTION, message.detail, message.trace)
            return
        if not isinstance(message, Done | OutOfMemory) or not self._running:
            raise ProtocolError(f"unexpected {type(message).__name__}")
        number, bank, batch = self._running[0]
        if message.number != number:
            raise ProtocolError(f"batch {message.number} answered, {number} is running")
        if isinstance(message, OutOfMemory) and len(batch) == 1:
            # Nothing smaller can be tried. A fresh process has all of the device's memory.
            self.kill(FailureKind.OUT_OF_MEMORY, "The device has no room for a single image.")
            return
        if isinstance(message, Done) and len(message.finite) != len(batch):
            raise ProtocolError(f"{len(message.finite)} masks for {len(batch)} images")
        self._running.popleft()
        self._free_banks.append(bank)
        self._begin_first()
        if self.owner is None:
            return
        try:
            if isinstance(message, Done):
                self.memory = Memory(message.resident_bytes, message.device_bytes)
                self.owner.done(batch, message, self._shared.masks[bank, : len(batch)])
            else:
                self.owner.out_of_memory(batch)
        except Exception:
            # Still unfinished for whoever in it has no answer.
            self._running.appendleft((number, bank, batch))
            raise

    def _begin_first(self) -> None:
        """The oldest batch is the one the device works on: its time starts now."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._running:
            self._running[0][2].started_s = self._loop.time()
            self._watchdog = self._loop.call_later(self.watchdog_s, self._bark)

    def _bark(self) -> None:
        self.kill(FailureKind.HANG, f"No answer for {self.watchdog_s:.1f} s.")


class Leaving:
    """Workers that were sent off and may not be gone yet."""

    def __init__(self) -> None:
        self._workers: set[Worker] = set()

    def dismiss(self, worker: Worker) -> None:
        """Send a worker off; its owner hears no more of it."""
        worker.dismiss()
        self._workers.add(worker)
        worker.when_gone(self._workers.discard)

    async def gone(self) -> None:
        """Wait until every one of them is reaped. Whoever is cancelled here may ask again."""
        while self._workers:
            await next(iter(self._workers)).gone()


async def load(spec: WorkerSpec, launch: Launch) -> Worker:
    """Bring up a worker: load, check, share memory, warm up. Raises `WorkerEndError`.

    Leaves nothing behind when it fails or is cancelled.
    """
    with contextlib.ExitStack() as stack:
        try:
            segment_fd = shared.create()
            stack.callback(os.close, segment_fd)
            link = await launch(segment_fd, thread_environment(spec.threads))
        except (OSError, RuntimeError) as error:
            # No process, descriptor, memory or thread to be had now; there may be later.
            detail = f"The worker could not be started: {error}"
            raise WorkerEndError(FailureKind.EXIT, detail) from error
        try:
            async with _ended_on_failure(link), asyncio.timeout(spec.load_timeout_s):
                return await _introduce(spec, link, segment_fd)
        except TimeoutError as error:
            detail = f"The model did not load within {spec.load_timeout_s:.0f} s."
            raise WorkerEndError(FailureKind.HANG, detail) from error
        except (ProtocolError, OSError) as error:
            raise WorkerEndError(FailureKind.PROTOCOL, str(error)) from error
        except WorkerEndError:
            raise
        except Exception as error:
            # A lane that hears of no end would wait for ever for one that will not come.
            log.exception("loading mishandled", extra={"device": spec.device})
            raise WorkerEndError(FailureKind.PROTOCOL, f"Loading went wrong: {error!r}") from error


@contextlib.asynccontextmanager
async def _ended_on_failure(link: Link) -> AsyncIterator[None]:
    """Kill and reap the worker when the block raises or is cancelled."""
    try:
        yield
    except BaseException:
        _kill(link)
        await _end(link)
        raise


async def _introduce(spec: WorkerSpec, link: Link, segment_fd: int) -> Worker:
    checkpoint = None if spec.checkpoint is None else str(spec.checkpoint)
    link.write(encode(Load(spec.factory, checkpoint, spec.device)))
    loaded = await _receive(link)
    if not isinstance(loaded, Loaded):
        await _give_up(link, loaded)
    # `cuda` is any GPU, and `auto` any device; one with a number is that one.
    asked = spec.device if ":" in spec.device else _kind(spec.device)
    if asked not in ("auto", loaded.device, _kind(loaded.device)):
        detail = f"The model was asked onto {spec.device} and came up on {loaded.device}."
        raise WorkerEndError(FailureKind.REFUSED, detail)
    # A second batch in flight hides the round trip from a fast device. On a CPU it would only
    # commit tickets early: the device is the processor that would prepare them.
    banks = 2 if _kind(loaded.device) == "cuda" else 1
    size = {"banks": banks, "max_batch": spec.max_batch, "input_size": loaded.input_size}
    try:
        shared.reserve(segment_fd, **size)
    except MemoryError as error:
        raise WorkerEndError(FailureKind.REFUSED, str(error)) from error
    link.write(encode(Attach(**size)))
    ready = await _receive(link)
    if not isinstance(ready, Ready):
        await _give_up(link, ready)
    batches = shared.SharedBatches(segment_fd, **size)
    info = ModelInfo(loaded.name, loaded.sha256, loaded.input_size, loaded.device, loaded.engine)
    watchdog_s = spec.watchdog_s or max(5.0, 20 * ready.slowest_s)
    return Worker(link, info, batches, ready, watchdog_s)


async def _give_up(link: Link, message: Message | None) -> NoReturn:
    if message is None:
        raise await _end(link)
    if isinstance(message, Refused):
        raise WorkerEndError(FailureKind.REFUSED, message.detail, message.trace)
    raise ProtocolError(f"unexpected {type(message).__name__}")


async def _receive(link: Link) -> Message | None:
    """Next message; None when the pipe is closed."""
    try:
        line = await link.reader.readuntil(b"\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        # A worker that dies with unread messages resets the pipe; how it died is asked elsewhere.
        return None
    except asyncio.LimitOverrunError as error:
        raise ProtocolError("a line without an end") from error
    return decode(line)


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _kill(link: Link) -> None:
    with contextlib.suppress(ProcessLookupError):
        link.process.kill()
    link.hang_up()


async def _end(link: Link) -> WorkerEndError:
    """Reap a worker whose pipe is closed; kill it first if it lives on. Says how it ended."""
    try:
        async with asyncio.timeout(PARTING_S):
            code = await link.process.wait()
    except TimeoutError:
        _kill(link)
        try:
            async with asyncio.timeout(REAP_S):
                await link.process.wait()
        except TimeoutError:
            log.error("worker does not end", extra={"pid": link.process.pid})
        return WorkerEndError(FailureKind.PIPE, "The worker closed its pipe and went on running.")
    link.hang_up()
    if code < 0:
        return WorkerEndError(FailureKind.SIGNAL, f"The worker was ended by signal {-code}.")
    return WorkerEndError(FailureKind.EXIT, f"The worker exited with status {code}.")
