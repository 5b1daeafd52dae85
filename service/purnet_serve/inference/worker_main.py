"""The worker process: holds a predictor, answers batches until its pipe closes.

Run as `python -m purnet_serve.inference.worker_main SOCKET_FD SEGMENT_FD PARENT_PID`. The
predictor's module is imported when the first message names it, so only here is torch loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import operator
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

from purnet.errors import ModelError, OutOfMemoryError
from purnet.inference.predictor import Predictor
from purnet_serve.inference import protocol
from purnet_serve.inference.shared_memory import SharedBatches

MAX_TRACE = 8000
"""Characters of a traceback that are sent for the log."""

_PR_SET_PDEATHSIG = 1


class WorkerLoop:
    """A worker's answers, one message at a time, with no process or socket around them."""

    def __init__(self, segment_fd: int) -> None:
        self._segment_fd = segment_fd
        self._predictor: Predictor | None = None
        self._shared: SharedBatches | None = None

    def handle(self, message: protocol.Message) -> protocol.Message:
        """Answer one message. Raises `ProtocolError` for one that is out of order."""
        if isinstance(message, protocol.Run):
            return self._run(message)
        if not isinstance(message, protocol.Load | protocol.Warmup):
            raise protocol.ProtocolError(f"A worker is never sent {type(message).__name__}.")
        try:
            if isinstance(message, protocol.Load):
                return self._load(message)
            return self._warm_up(message)
        except ModelError as error:
            return protocol.LoadFailed(str(error))
        except Exception as error:
            return protocol.LoadFailed(f"{type(error).__name__}: {error}", _trace())

    def _load(self, message: protocol.Load) -> protocol.Loaded:
        module, _, path = message.factory.partition(":")
        factory = operator.attrgetter(path)(importlib.import_module(module))
        checkpoint = None if message.checkpoint is None else Path(message.checkpoint)
        predictor: Predictor = factory(checkpoint, device=message.device, threads=message.threads)
        predictor.self_check()
        self._predictor = predictor
        engine = predictor.engine
        return protocol.Loaded(
            predictor.variant, predictor.sha256, predictor.input_size, engine.device, engine.name
        )

    def _warm_up(self, message: protocol.Warmup) -> protocol.Message:
        """Map the segment, then run every batch size once, so that no request pays for it."""
        predictor = self._loaded()
        shared = self._shared = SharedBatches(
            self._segment_fd,
            buffers=message.buffers,
            max_batch=message.max_batch,
            input_size=message.input_size,
        )
        max_batch, slowest_s = 0, 0.0
        for images in range(1, message.max_batch + 1):
            began_s = time.perf_counter()
            try:
                predictor.run(shared.pixels[0, :images])
            except OutOfMemoryError:
                break
            slowest_s = max(slowest_s, time.perf_counter() - began_s)
            max_batch = images
        if max_batch == 0:
            return protocol.LoadFailed("The device has no room for a single image.")
        return protocol.Ready(max_batch, slowest_s, _resident_bytes(), self._device_bytes())

    def _run(self, message: protocol.Run) -> protocol.Message:
        if self._shared is None:
            raise protocol.ProtocolError("A batch came before the warm-up.")
        masks = self._shared.masks[message.buffer, : message.images]
        began_s = time.perf_counter()
        try:
            output = self._loaded().run(self._shared.pixels[message.buffer, : message.images])
            np.copyto(masks, output.masks, casting="no")
        except OutOfMemoryError:
            return protocol.OutOfMemory(message.number)
        except Exception as error:
            return protocol.EngineFailed(f"{type(error).__name__}: {error}", _trace())
        infer_s = time.perf_counter() - began_s
        finite = [bool(flag) for flag in output.finite]
        return protocol.Done(
            message.number, finite, infer_s, _resident_bytes(), self._device_bytes()
        )

    def _loaded(self) -> Predictor:
        if self._predictor is None:
            raise protocol.ProtocolError("The warm-up came before the model.")
        return self._predictor

    def _device_bytes(self) -> int:
        """Engines that hold memory of their own device publish `memory_bytes()`."""
        memory_bytes = getattr(self._loaded().engine, "memory_bytes", None)
        return 0 if memory_bytes is None else int(memory_bytes())


def main() -> None:
    """Serve the socket named on the command line until it closes."""
    socket_fd, segment_fd, parent_pid = (int(argument) for argument in sys.argv[1:4])
    # The service ends this process by closing the pipe: a signal to the whole process group must
    # not take the device away from requests that are being drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _exit_with_parent(parent_pid)
    connection = socket.socket(fileno=socket_fd)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    loop = WorkerLoop(segment_fd)
    while True:
        answer = loop.handle(protocol.decode(inbox.get()))
        connection.sendall(protocol.encode(answer))
        if isinstance(answer, protocol.LoadFailed | protocol.EngineFailed):
            os._exit(os.EX_SOFTWARE)


def _read(connection: socket.socket, inbox: queue.SimpleQueue[bytes]) -> None:
    """Read in a thread of its own: a closed pipe ends the process even while the engine runs."""
    try:
        with connection.makefile("rb") as lines:
            for line in lines:
                inbox.put(line)
    finally:
        os._exit(os.EX_OK)


def _exit_with_parent(parent_pid: int) -> None:
    """Have the kernel, where it can, end this process with its parent, even when it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(os.EX_OK)


def _trace() -> str:
    """The end of the current traceback, for the log of the service."""
    return traceback.format_exc()[-MAX_TRACE:]


def _resident_bytes() -> int:
    """Memory this process has in RAM now; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
