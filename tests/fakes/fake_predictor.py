"""A predictor whose masks tell which image they belong to, and that fails in every known way.

It runs inside real worker processes. Its "checkpoint" is a JSON file (see `Behaviour`); what an
image does is written into its first pixels (see `image`). Nothing here waits for time: a gated
predictor reports each batch on one FIFO and goes on when a byte comes from another.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path

import numpy as np

from purnet.errors import CheckpointError, DeviceError, OutOfMemoryError
from purnet.inference.engine import EngineOutput

FACTORY = "fake_predictor:load"


class Act(IntEnum):
    """What an image does to the worker that runs it."""

    NOTHING = 0
    RAISE = 1
    EXIT = 2
    SEGFAULT = 3
    KILL = 4
    STOP = 5
    NON_FINITE = 6
    LOSE_PIPE = 7
    CROWDED = 8
    """Out of memory in a batch of more than `CROWD`, whatever else it does."""


CROWD = 2
"""Images that fit into memory together with a `CROWDED` one."""


DEADLY = (Act.RAISE, Act.EXIT, Act.SEGFAULT, Act.KILL, Act.STOP, Act.LOSE_PIPE)


@dataclass(frozen=True)
class Behaviour:
    """What a checkpoint file may say."""

    name: str = "fake"
    input_size: int = 16
    device: str = "cpu"
    streams: int = 1
    batch_s: float = 0.010
    """What every batch is said to take, of whatever size,"""
    image_s: float = 0.001
    """and what each of its images adds to that."""
    gate: str | None = None
    """Folder with the FIFOs `entered` and `leave`."""
    most: int = 1000
    """More images than this at once are out of memory."""
    refuse: str | None = None
    fail_check: bool = False
    die_loading: bool = False

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


def image(number: int, act: Act = Act.NOTHING, size: int = 16) -> np.ndarray:
    """(S, S, 3) uint8 pixels of request `number` (below 2**24)."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[0, 0] = (1, act, 0)
    pixels[0, 1] = tuple(number.to_bytes(3, "big"))
    return pixels


def number_in(mask: np.ndarray) -> int:
    """The number of the image a mask was made from; raises if the mask is of more than one."""
    rows = np.unique(mask[:, :3], axis=0)
    if len(rows) != 1:
        raise AssertionError("a mask made of parts of several")
    return int.from_bytes(rows[0].tobytes(), "big")


class FakeEngine:
    name = "fake"

    def __init__(self, behaviour: Behaviour) -> None:
        self.device = behaviour.device
        self.streams = behaviour.streams
        self._behaviour = behaviour

    def __call__(self, pixels: np.ndarray) -> EngineOutput:
        requests = [tile for tile in pixels if tile[0, 0, 0] == 1]
        if requests and self._behaviour.gate is not None:
            pass_gate(Path(self._behaviour.gate), [_number(tile) for tile in requests])
        crowded = any(tile[0, 0, 1] == Act.CROWDED for tile in requests)
        if len(pixels) > self._behaviour.most or (crowded and len(pixels) > CROWD):
            raise OutOfMemoryError(f"{len(pixels)} images")
        masks = np.zeros(pixels.shape[:3], np.uint8)
        finite = np.ones(len(pixels), np.bool_)
        for slot, tile in enumerate(pixels):
            masks[slot, :, :3] = tile[0, 1]
            if tile[0, 0, 0] == 1:
                finite[slot] = perform(Act(int(tile[0, 0, 1])))
        return EngineOutput(masks, finite)

    def memory_bytes(self) -> int:
        return 4096


class FakePredictor:
    def __init__(self, behaviour: Behaviour, sha256: str, threads: int | None) -> None:
        self.variant = behaviour.name
        self.sha256 = sha256
        self.input_size = behaviour.input_size
        self.threads = threads
        self.engine = FakeEngine(behaviour)
        self._behaviour = behaviour

    def self_check(self) -> None:
        if self._behaviour.fail_check:
            raise CheckpointError("The reference photo gives another mask.")

    def run(self, pixels: np.ndarray) -> EngineOutput:
        return self.engine(pixels)

    def measure(self, pixels: np.ndarray) -> float:
        self.run(pixels)
        return self._behaviour.batch_s + self._behaviour.image_s * len(pixels)


def load(
    checkpoint: Path | None = None, *, device: str = "auto", threads: int | None = None
) -> FakePredictor:
    """As `purnet.inference.factory.load_to_serve`."""
    if checkpoint is None:
        return FakePredictor(Behaviour(), hashlib.sha256(b"default").hexdigest(), threads)
    try:
        data = checkpoint.read_bytes()
        behaviour = Behaviour(**json.loads(data))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.name} is not a checkpoint.") from error
    if behaviour.die_loading:
        os._exit(9)
    if behaviour.refuse is not None:
        raise DeviceError(behaviour.refuse)
    if device == "cuda:7":
        raise DeviceError("There is no device cuda:7 here.")
    if behaviour.device == "cuda" and device.startswith("cuda:"):
        behaviour = replace(behaviour, device=device)
    return FakePredictor(behaviour, hashlib.sha256(data).hexdigest(), threads)


def pass_gate(folder: Path, numbers: list[int]) -> None:
    """Report a batch, then wait until one byte says to go on."""
    with (folder / "entered").open("wb", buffering=0) as entered:
        entered.write(json.dumps(numbers).encode() + b"\n")
    with (folder / "leave").open("rb", buffering=0) as leave:
        leave.read(1)


def perform(act: Act) -> bool:
    """Do what the image says; returns whether its mask is finite."""
    match act:
        case Act.RAISE:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case Act.EXIT:
            os._exit(3)
        case Act.SEGFAULT:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        case Act.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Act.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Act.LOSE_PIPE:
            with socket.socket(fileno=os.dup(int(sys.argv[1]))) as pipe:
                pipe.shutdown(socket.SHUT_WR)
            signal.pause()
    return act is not Act.NON_FINITE


def _number(tile: np.ndarray) -> int:
    return int.from_bytes(tile[0, 1].tobytes(), "big")
