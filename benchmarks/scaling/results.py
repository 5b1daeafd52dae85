"""What a run measured, as one JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from purnet.io import write_atomically


@dataclass(frozen=True)
class Stages:
    """What one photo of a size costs: milliseconds of one processor, and bytes."""

    photo: str
    """Its size, e.g. `1920 x 1080`."""
    http_ms: float
    """HTTP, admission, queue, pipe, metrics and log, in the API process."""
    codec_ms: float
    """Decoding it and encoding its mask, in the API process."""
    device_ms: float
    """The network, in a worker on a CPU."""
    upload_bytes: int
    answer_bytes: int


@dataclass(frozen=True)
class Deployment:
    """One way to run the service in one round."""

    name: str
    round: int
    alone_ms: list[float]
    """Latencies with one client that never pauses, ascending."""
    masks_rps: float
    """With clients that keep it busy."""
    cpu_ms: float
    """Milliseconds of one processor a mask, of all its processes, while it is busy."""
    idle_processors: float
    """Processors in use while nothing is asked."""
    pss_mib: float
    """Memory of all its processes, shared pages counted once."""


@dataclass(frozen=True)
class Growth:
    """Masks a second of so many of something."""

    number: int
    round: int
    masks_rps: float
    cpu_ms: float
    """Milliseconds of one processor a mask, of the processes named with the table."""


@dataclass(frozen=True)
class Transport:
    """One way to send pixels to a replica, in one round."""

    name: str
    round: int
    alone_ms: list[float]
    """Ascending, with one client that never pauses."""
    images_rps: float
    """With clients that keep it busy."""
    cpu_ms: float
    """Milliseconds of one processor an image then, of the asking process and the cluster."""


@dataclass(frozen=True)
class Load:
    """Requests at one rate: what they took and what the model said they would."""

    places: int
    factor: float
    """Of the capacity."""
    offered_rps: float
    """As many as were due in these seconds."""
    seconds: float
    latencies_ms: list[float]
    """Ascending, of requests that were answered, from when they were due."""
    refused: int
    service_ms: list[float]
    """What the model was given: how long a photo holds a place."""
    target_s: float | None
    """Who would not be answered within that is refused; None: nobody is."""


@dataclass
class Run:
    """Everything of a run."""

    machine: str
    commit: str
    began: str
    stages: list[Stages] = field(default_factory=list)
    deployments: list[Deployment] = field(default_factory=list)
    transports: list[Transport] = field(default_factory=list)
    """Ways to send pixels to a replica on another node, whose engine costs nothing."""
    replicas: list[Growth] = field(default_factory=list)
    """Model replicas whose engine sleeps 100 ms an image, asked at the handle."""
    servers: list[Growth] = field(default_factory=list)
    """Servers before replicas whose engine costs nothing."""
    replica_loads: list[Load] = field(default_factory=list)
    """Rates offered to those replicas."""
    service_loads: list[Load] = field(default_factory=list)
    """Rates offered to one service with the shipped network."""

    def save(self, path: Path) -> None:
        """Write it whole."""
        text = TypeAdapter(Run).dump_json(self, indent=1)
        write_atomically(path, lambda part: part.write_bytes(text))


def load_run(path: Path) -> Run:
    """Read what `Run.save` wrote. Raises pydantic's `ValidationError` for anything else."""
    return TypeAdapter(Run).validate_json(path.read_bytes())
