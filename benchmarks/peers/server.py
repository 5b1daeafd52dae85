"""A peer that runs: started, asked until it answers, stopped whatever happens."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from benchmarks.peers.environments import ROOT, environment
from benchmarks.peers.generator import Load, Outcome, Target
from benchmarks.peers.peers import Peer
from benchmarks.peers.processes import PeakMemory, ProcessTree, idle_processors, spawn
from pydantic import TypeAdapter

START_S = 180.0
"""Seconds a server has to give its first mask."""
ASK_AGAIN_S = 0.1
PORTS = range(21_000, 29_000)
"""Below those the kernel hands out, of which some servers' own processes take some."""
SETTLED_PROCESSORS = 0.05
"""Processors in use above those of the idle server, when it counts as done with a step."""


@dataclass(frozen=True)
class Limits:
    """What a run tuned for a deadline tells each server."""

    deadline_s: float
    waiting: int
    """Requests that can be answered within the deadline."""


class Server:
    """A peer with its process tree. Made by `running`."""

    def __init__(
        self, peer: Peer, target: Target, processors: set[int], tree: ProcessTree, log: Path
    ) -> None:
        self.peer, self.target, self.processors = peer, target, processors
        self.tree, self.memory = tree, PeakMemory(tree)
        self.log = log
        self.start_s = 0.0
        """Seconds from the start of the process to the first mask."""

    def post(self, photo: bytes) -> httpx.Response:
        """One request on a connection of its own."""
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.send(self.target.request(photo))

    def offer(self, load: Load, processors: set[int]) -> Outcome:
        """Run a step of load from a process on some processors."""
        command = [sys.executable, "-m", "benchmarks.peers.generator"]
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, processors)
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
            )
        finally:
            os.sched_setaffinity(0, own)
        self.tree.others.add(process.pid)
        try:
            told, _ = process.communicate(TypeAdapter(Load).dump_json(load))
        finally:
            process.kill()
            process.wait()
            self.tree.others.discard(process.pid)
        if process.returncode:
            raise SystemExit("the load generator failed")
        return TypeAdapter(Outcome).validate_json(told)

    def settle_s(self, idle: float, most_s: float) -> float | None:
        """Wait until the work of requests that nobody waits for is done; None if it is not."""
        began_s = time.monotonic()
        while (took_s := time.monotonic() - began_s) < most_s:
            if idle_processors(self.tree, 0.5) <= idle + SETTLED_PROCESSORS:
                return took_s
        return None


@contextmanager
def running(
    peer: Peer, processors: set[int], work: Path, photo: bytes, limits: Limits | None
) -> Iterator[Server]:
    """Start a peer and wait for its first mask of `photo`; its output goes to a file in `work`."""
    port = free_port()
    values = template_values(peer, port, processors, work, limits)
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{peer.name}.log"
    began_s = time.monotonic()
    with path.open("wb") as log, ExitStack() as stack:
        process = spawn(
            [part.format(**values) for part in _command(peer, limits)],
            processors,
            env=_environment(peer, values, limits),
            cwd=logs,
            log=log,
        )
        tree = ProcessTree(process)
        stack.callback(tree.end)
        server = Server(peer, _target(peer, port, values, limits), processors, tree, path)
        _wait_ready(server, process, photo)
        server.start_s = time.monotonic() - began_s
        stack.enter_context(server.memory.watching())
        yield server


def template_values(
    peer: Peer, port: int, processors: set[int], work: Path, limits: Limits | None
) -> dict[str, str]:
    """What the templates of a `Peer` are formatted with.

    `bin` is that of the peer's environment, `root` the checkout, `work` the folder of all
    environments; those after `threads` are there when the run is tuned for a deadline.
    """
    values: dict[str, object] = {
        "bin": environment(peer.environment, work) / "bin",
        "root": ROOT,
        "work": work,
        "port": port,
        "processors": len(processors),
        "threads": len(processors) + 1,
    }
    if limits is not None:
        values |= {
            "deadline_s": limits.deadline_s,
            "deadline_ms": round(limits.deadline_s * 1000),
            "waiting": limits.waiting,
            # mosec bounds each of two queues; what is decoded, predicted and encoded is on top.
            "waiting_each": max(2, (limits.waiting - 6) // 2),
        }
    return {name: str(value) for name, value in values.items()}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit("no free port")


def _command(peer: Peer, limits: Limits | None) -> tuple[str, ...]:
    return peer.command if limits is None else (*peer.command, *peer.deadline_args)


def _environment(peer: Peer, values: Mapping[str, str], limits: Limits | None) -> dict[str, str]:
    """Ours, without what would reach into the peer, and what the peer is told."""
    strange = ("PURNET_", "PEER_", "PYTHON", "VIRTUAL_ENV", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    own = {**peer.env, **(peer.deadline_env if limits is not None else {})}
    told = {name: value.format(**values) for name, value in own.items()}
    told |= {"PEER_PORT": values["port"], "PYTHONDONTWRITEBYTECODE": "1"}
    if any("benchmarks.peers" in part for part in peer.command):
        told["PYTHONPATH"] = values["root"]
    return kept | told


def _target(peer: Peer, port: int, values: Mapping[str, str], limits: Limits | None) -> Target:
    headers = {} if limits is None else peer.deadline_headers
    return Target(
        f"http://127.0.0.1:{port}{peer.path}",
        {name: value.format(**values) for name, value in headers.items()},
        peer.form_file,
        peer.form_fields,
    )


def _wait_ready(server: Server, process: subprocess.Popen[bytes], photo: bytes) -> None:
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s and process.poll() is None:
        try:
            if server.post(photo).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(ASK_AGAIN_S)
    raise SystemExit(f"{server.peer.name} does not come up; see {server.log}")
