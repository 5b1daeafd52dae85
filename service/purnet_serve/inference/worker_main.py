"""The worker process: holds a predictor, answers batches until its pipe closes.

Run as `python -m purnet_serve.inference.worker_main SOCKET_FD SEGMENT_FD PARENT_PID`. The
predictor's module is imported when the first message says so, so this is the only place where torch
enters.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from purnet.errors import ModelError, OutOfMemoryError
from purnet.imaging import UInt8Array
from purnet.inference.engine import Engine, EngineOutput
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
from purnet_serve.inference.shared_memory import SharedBatches

MAX_TRACE = 8000
"""Characters of a traceback that are worth a log line."""

_PR_SET_PDEATHSIG = 1


class WorkerPredictor(Protocol):
    """What a worker needs of a predictor; `purnet.inference.predictor.Predictor` is one."""

    variant: str
    sha256: str
    input_size: int
    engine: Engine

    def self_check(self) -> None:
        """Raise `CheckpointError` unless a known photo gives the mask it should."""
        ...

    def run(self, pixels: UInt8Array) -> EngineOutput:
        """(N, S, S, 3) uint8 RGB -> N masks. Raises `OutOfMemoryError`."""
        ...


class Servant:
    """A worker's answers, one message at a time, with no process or socket around them."""

    def __init__(self, segment_fd: int) -> None:
        self._segment_fd = segment_fd
        self._predictor: WorkerPredictor | None = None
        self._shared: SharedBatches | None = None

    def handle(self, message: Message) -> Message:
        """Answer one message. Raises `ProtocolError` for one that is out of order."""
        match message:
            case Load():
                return self._refusing(lambda: self._load(message))
            case Attach():
                return self._refusing(lambda: self._attach(message))
            case Run():
                return self._run(message)
        raise ProtocolError(f"A worker is never sent {type(message).__name__}.")

    def _refusing(self, step: Callable[[], Message]) -> Message:
        """Whatever keeps the model from coming up is told in words, not by dying."""
        try:
            return step()
        except ModelError as error:
            return Refused(str(error))
        except Exception as error:
            return Refused(f"{type(error).__name__}: {error}", _trace())

    def _load(self, message: Load) -> Loaded:
        module, _, path = message.factory.partition(":")
        factory = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        checkpoint = None if message.checkpoint is None else Path(message.checkpoint)
        predictor: WorkerPredictor = factory(checkpoint, device=message.device)  # type: ignore[operator]
        predictor.self_check()
        self._predictor = predictor
        engine = predictor.engine
        return Loaded(
            predictor.variant, predictor.sha256, predictor.input_size, engine.device, engine.name
        )

    def _attach(self, message: Attach) -> Message:
        """Map the segment, then run every batch size once: no request pays for a first time."""
        shared = self._shared = SharedBatches(
            self._segment_fd,
            banks=message.banks,
            max_batch=message.max_batch,
            input_size=message.input_size,
        )
        predictor = self._loaded()
        ceiling, slowest_s = 0, 0.0
        for images in range(1, message.max_batch + 1):
            began_s = time.perf_counter()
            try:
                predictor.run(shared.pixels[0, :images])
            except OutOfMemoryError:
                break
            slowest_s = max(slowest_s, time.perf_counter() - began_s)
            ceiling = images
        if ceiling == 0:
            return Refused("The device has no room for a single image.")
        return Ready(ceiling, slowest_s, _resident_bytes(), self._device_bytes())

    def _run(self, message: Run) -> Message:
        if self._shared is None:
            raise ProtocolError("A batch came before the memory it lies in.")
        masks = self._shared.masks[message.bank, : message.images]
        began_s = time.perf_counter()
        try:
            maps = self._loaded().run(self._shared.pixels[message.bank, : message.images])
            np.copyto(masks, maps.masks, casting="no")
        except OutOfMemoryError:
            return OutOfMemory(message.number)
        except Exception as error:
            return Fault(f"{type(error).__name__}: {error}", _trace())
        infer_s = time.perf_counter() - began_s
        finite = [bool(flag) for flag in maps.finite]
        return Done(message.number, finite, infer_s, _resident_bytes(), self._device_bytes())

    def _loaded(self) -> WorkerPredictor:
        if self._predictor is None:
            raise ProtocolError("The model was asked for before it was loaded.")
        return self._predictor

    def _device_bytes(self) -> int:
        """Engines that hold memory of their own device publish `memory_bytes()`."""
        memory_bytes = getattr(self._loaded().engine, "memory_bytes", None)
        return 0 if memory_bytes is None else int(memory_bytes())


def main() -> None:
    """Serve the socket named on the command line until it closes."""
    socket_fd, segment_fd, parent = (int(argument) for argument in sys.argv[1:4])
    # The service decides when this process ends, and says so by closing the pipe: a signal sent to
    # the whole group must not take the device away from requests that are being drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with(parent)
    connection = socket.socket(fileno=socket_fd)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    servant = Servant(segment_fd)
    while True:
        answer = servant.handle(decode(inbox.get()))
        connection.sendall(encode(answer))
        if isinstance(answer, Refused | Fault):
            os._exit(os.EX_SOFTWARE)


def _listen(connection: socket.socket, inbox: queue.SimpleQueue[bytes]) -> None:
    """Read in a thread of its own: a closed pipe ends the process even while the engine runs."""
    try:
        with connection.makefile("rb") as lines:
            for line in lines:
                inbox.put(line)
    finally:
        os._exit(os.EX_OK)


def _die_with(parent: int) -> None:
    """End with the parent even when stopped or stuck, where the kernel can be asked for that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(os.EX_OK)


def _trace() -> str:
    """The end of the current traceback: told to the service, whose log has one line an event."""
    return traceback.format_exc()[-MAX_TRACE:]


def _resident_bytes() -> int:
    """Memory this process has in RAM now; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
