"""The worker process: holds a predictor, answers batches until its pipe closes.

A thread runs one batch at a time; where the engine has several streams there is a thread for each.

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
from purnet.imaging import UInt8Array
from purnet.inference.predictor import Predictor
from purnet_serve.inference import protocol
from purnet_serve.inference.shared_memory import SharedBatches

MIN_DOUBLING_GAIN = 0.1
"""Part of an image's time that a batch of twice the size must save to be worth its latency."""

MAX_TRACEBACK_CHARS = 8000
"""Characters of a traceback that are sent for the log."""

_PR_SET_PDEATHSIG = 1


class WorkerLoop:
    """A worker's answers, with no process or socket around them.

    `handle` may run in as many threads at one time as the engine has streams.
    """

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
            return protocol.LoadFailed(f"{type(error).__name__}: {error}", _traceback())

    def _load(self, message: protocol.Load) -> protocol.Loaded:
        module, _, path = message.factory.partition(":")
        factory = operator.attrgetter(path)(importlib.import_module(module))
        checkpoint = None if message.checkpoint is None else Path(message.checkpoint)
        predictor: Predictor = factory(checkpoint, device=message.device, threads=message.threads)
        predictor.self_check()
        self._predictor = predictor
        engine = predictor.engine
        return protocol.Loaded(
            name=predictor.variant,
            sha256=predictor.sha256,
            input_size=predictor.input_size,
            device=engine.device,
            engine=engine.name,
            streams=engine.streams,
        )

    def _warm_up(self, message: protocol.Warmup) -> protocol.Message:
        """Map the segment, then run what will be in use, so that no request pays for it."""
        predictor = self._loaded()
        shared = self._shared = SharedBatches(
            self._segment_fd,
            buffers=message.buffers,
            max_batch=message.max_batch,
            input_size=message.input_size,
        )
        pixels = shared.pixels.reshape(-1, *shared.pixels.shape[2:])
        streams = predictor.engine.streams
        try:
            if streams > 1:
                streams, seconds = measure_streams(predictor, pixels[:streams])
                curve = {1: seconds}
            else:
                curve = measure_batches(predictor, pixels[: message.max_batch])
        except OutOfMemoryError:
            return protocol.LoadFailed("The device has no room for a single image.")
        return protocol.Ready(
            streams, list(curve), list(curve.values()), _resident_bytes(), self._device_bytes()
        )

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
            return protocol.EngineFailed(f"{type(error).__name__}: {error}", _traceback())
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


def measure_streams(predictor: Predictor, pixels: UInt8Array) -> tuple[int, float]:
    """How many of the images fit into memory on streams of their own, and their seconds.

    Raises `OutOfMemoryError` when not even one does.
    """
    streams = len(pixels)
    while streams > 1:
        try:
            return streams, predictor.measure(pixels[:streams])
        except OutOfMemoryError:
            streams //= 2
    return 1, predictor.measure(pixels[:1])


def measure_batches(predictor: Predictor, pixels: UInt8Array) -> dict[int, float]:
    """Seconds of batches of 1, 2, 4, ... of the images, as long as larger ones are faster and fit.

    Raises `OutOfMemoryError` when not even one image does.
    """
    images, curve = 1, {1: predictor.measure(pixels[:1])}
    while images < len(pixels):
        larger = min(2 * images, len(pixels))
        try:
            seconds = predictor.measure(pixels[:larger])
        except OutOfMemoryError:
            break
        allowed = 1 - MIN_DOUBLING_GAIN * (larger / images - 1)
        if seconds / larger > allowed * curve[images] / images:
            break
        images, curve[larger] = larger, seconds
    return curve


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
    loop, sending = WorkerLoop(segment_fd), threading.Lock()

    def serve() -> None:
        try:
            while True:
                answer = loop.handle(protocol.decode(inbox.get()))
                with sending:
                    connection.sendall(protocol.encode(answer))
                if isinstance(answer, protocol.LoadFailed | protocol.EngineFailed):
                    os._exit(os.EX_SOFTWARE)
                if isinstance(answer, protocol.Ready):
                    for _ in range(answer.streams - 1):
                        threading.Thread(target=serve, daemon=True).start()
        except BaseException:
            # A fault of ours in any thread ends the process: its batch would never be answered.
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)

    serve()


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


def _traceback() -> str:
    """The end of the current traceback, for the log of the service."""
    return traceback.format_exc()[-MAX_TRACEBACK_CHARS:]


def _resident_bytes() -> int:
    """Memory this process has in RAM now; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
