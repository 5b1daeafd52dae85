"""The order of things: our capacity first, then rounds of all peers, A B C A B C, step by step.

A machine is faster in one minute than in the next; in rounds that meets all peers alike, and a
ratio of two peers compares the same round. The result is written after every step.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import gate
from benchmarks.peers.environments import BASELINE, ROOT, commit, versions
from benchmarks.peers.generator import OK, Load
from benchmarks.peers.peers import OURS, PEERS, Peer
from benchmarks.peers.photos import SLOWER, gate_photos, photos_of
from benchmarks.peers.processes import idle_processors
from benchmarks.peers.results import (
    About,
    Plan,
    Run,
    Start,
    Step,
    counted,
    percentile,
    sent_late_p99_ms,
)
from benchmarks.peers.server import Limits, Server, running

from purnet.imaging import UInt8Array

CLIENTS = 16
"""Of the closed loop that finds a capacity."""
WARM_CLIENTS, WARM_S = 4, 3.0
SAFETY = 0.7
"""Share of what our capacity answers within the deadline that peers let wait: rates vary."""
SMOKE_REQUESTS = 5


@dataclass(frozen=True)
class Places:
    """Which processors the server and the load generator have."""

    server: set[int]
    generator: set[int]


def places(mode: str) -> Places:
    """`core0` or `both`, of the processors this process may use."""
    everything = os.sched_getaffinity(0)
    if mode == "both":
        return Places(everything, everything)
    first, *others = sorted(everything)
    if not others:
        raise SystemExit("--mode core0 needs two processors")
    return Places({first}, set(others))


class Benchmark:
    """A run: what is sent, to whom, from where, and what came of it so far."""

    def __init__(self, plan: Plan, work: Path, photos: Path, out: Path) -> None:
        self._plan, self._work, self._out = plan, work, out
        self._places = places(plan.mode)
        os.sched_setaffinity(0, self._places.generator)
        self._photos = photos_of(photos, work, plan.mixes)
        self._gate_photos = gate_photos(photos)
        self._wanted: list[UInt8Array] = []
        self._run = Run(
            machine=_machine(),
            commit=commit(ROOT),
            baseline=commit(work / BASELINE) if BASELINE in plan.peers else None,
            began=time.strftime("%Y-%m-%d %H:%M"),
            plan=plan,
            photos={mix: _sizes(paths) for mix, paths in self._photos.items()},
            capacity_rps={},
        )

    def smoke(self) -> None:
        """Start each peer, pass it through the gate, ask five times. Times nothing of weight."""
        with self._started(PEERS[OURS], None) as ours:
            self._wanted = gate.masks_of(ours, self._gate_photos, at_once=1)
        for name in self._plan.peers:
            limits = Limits(self._plan.good_s, CLIENTS) if self._plan.tuning == "deadline" else None
            with self._started(PEERS[name], limits) as server:
                about = self._checked(server)
                for photo in self._gate_photos[:SMOKE_REQUESTS]:
                    began_s = time.monotonic()
                    server.post(photo).raise_for_status()
                    about.smoke_ms.append(round((time.monotonic() - began_s) * 1000, 1))
                self._note_start(server, round_=0)
                print(
                    f"{name}: {about.gate}; {about.smoke_ms} ms; started in {server.start_s:.1f} s;"
                    f" {len(server.tree.members())} processes, {server.tree.pss_mib():.0f} MiB",
                    file=sys.stderr,
                    flush=True,
                )

    def measure(self) -> None:
        """All rounds."""
        self._calibrate()
        for number in range(self._plan.rounds):
            for name in self._plan.peers:
                for limits, mixes in self._visits():
                    with self._started(PEERS[name], limits) as server:
                        self._checked(server)
                        idle = self._note_start(server, number)
                        for mix in mixes:
                            for step in self._steps(server, number, mix, idle):
                                self._run.steps.append(step)
                                self._save()
                                print(_told(step, self._plan), file=sys.stderr, flush=True)

    def _started(self, peer: Peer, limits: Limits | None) -> AbstractContextManager[Server]:
        return running(peer, self._places.server, self._work, self._gate_photos[0], limits)

    def _calibrate(self) -> None:
        """Our masks of the gate's photos, and our capacity in each mix."""
        with self._started(PEERS[OURS], None) as server:
            self._wanted = gate.masks_of(server, self._gate_photos, at_once=1)
            idle = idle_processors(server.tree, 1.0)
            for mix in self._plan.mixes:
                self._warm_up(server, mix, idle)
                step = self._step(server, 0, mix, idle, clients=CLIENTS, ramp_s=1.0)
                self._run.capacity_rps[mix] = step.masks_rps
                print(f"capacity, {mix}: {step.masks_rps:.1f}/s", file=sys.stderr, flush=True)

    def _visits(self) -> Iterator[tuple[Limits | None, list[str]]]:
        """Starts of a peer in a round. A limit on what waits fits one mix."""
        if self._plan.tuning == "default":
            yield None, self._plan.mixes
            return
        for mix in self._plan.mixes:
            answered = SAFETY * self._run.capacity_rps[mix] * self._plan.good_s
            yield Limits(self._plan.good_s, max(2, int(answered))), [mix]

    def _checked(self, server: Server) -> About:
        """Pass a peer through the gate, once a run."""
        peer = server.peer
        if peer.name not in self._run.peers:
            installed = versions(peer.environment, self._work)
            settings = peer.settings
            if self._plan.tuning == "deadline":
                settings += f". Against late answers: {peer.deadline_settings}"
            self._run.peers[peer.name] = About(
                settings,
                {name: installed[name] for name in peer.packages if name in installed},
                peer.batches,
                gate.check(server, self._gate_photos, self._wanted),
            )
            if strays := server.tree.strays(server.processors):
                print(f"{peer.name}: {strays} processes may run elsewhere", file=sys.stderr)
        return self._run.peers[peer.name]

    def _note_start(self, server: Server, round_: int) -> float:
        idle = idle_processors(server.tree, 2.0)
        start = Start(server.peer.name, round_, server.start_s, idle, server.tree.pss_mib())
        self._run.starts.append(start)
        self._save()
        return idle

    def _warm_up(self, server: Server, mix: str, idle: float) -> None:
        seconds = WARM_S * SLOWER[mix]
        self._step(server, 0, mix, idle, clients=WARM_CLIENTS, ramp_s=0.0, seconds=seconds)

    def _steps(self, server: Server, number: int, mix: str, idle: float) -> Iterator[Step]:
        """All steps of a mix on a running peer."""
        seconds, ramp_s = self._plan.seconds * SLOWER[mix], self._plan.ramp_s * SLOWER[mix]
        self._warm_up(server, mix, idle)
        yield self._step(server, number, mix, idle, clients=1, ramp_s=0.5, seconds=seconds / 2)
        if self._plan.tuning == "default":  # else most of 16 clients are refused, and spin
            yield self._step(server, number, mix, idle, clients=CLIENTS, ramp_s=ramp_s / 2)
        for factor in self._plan.factors:
            yield self._step(server, number, mix, idle, factor=factor, ramp_s=ramp_s)

    def _step(
        self,
        server: Server,
        number: int,
        mix: str,
        idle: float,
        *,
        clients: int | None = None,
        factor: float | None = None,
        ramp_s: float,
        seconds: float | None = None,
    ) -> Step:
        """Offer one step and wait until the server is idle again."""
        seconds = seconds or self._plan.seconds * SLOWER[mix]
        rate = None if factor is None else factor * self._run.capacity_rps[mix]
        load = Load(
            server.target,
            self._photos[mix],
            clients,
            rate,
            ramp_s,
            seconds,
            self._plan.timeout_s,
            seed=f"{mix} {number}",  # the same arrivals for every peer of a round
        )
        server.memory.take_mib()
        before_s, began_s = server.tree.cpu_s(), time.monotonic()
        outcome = server.offer(load, self._places.generator)
        took_s = time.monotonic() - began_s
        backlog_s = server.settle_s(idle, self._plan.patience_s)
        used_s = server.tree.cpu_s() - before_s
        masks = sum(request.status == OK for request in outcome.requests)
        statuses, latencies_ms, masks_rps = counted(outcome.requests, ramp_s, seconds)
        return Step(
            peer=server.peer.name,
            round=number,
            mix=mix,
            clients=clients,
            factor=factor,
            offered_rps=rate,
            seconds=seconds,
            statuses=statuses,
            latencies_ms=latencies_ms,
            masks_rps=masks_rps,
            cpu_ms_per_mask=used_s / masks * 1000 if masks else None,
            peak_rss_mib=server.memory.take_mib(),
            pss_mib=server.tree.pss_mib(),
            backlog_s=backlog_s,
            sent_late_p99_ms=sent_late_p99_ms(outcome),
            generator_processors=outcome.cpu_s / took_s,
        )

    def _save(self) -> None:
        self._run.save(self._out)


def about_seconds(plan: Plan) -> float:
    """How long a run takes if no server has a backlog: starts, gates and pauses are guesses."""
    slower = sum(SLOWER[mix] for mix in plan.mixes)
    closed = 0.0 if plan.tuning == "deadline" else plan.seconds + plan.ramp_s / 2
    opened = len(plan.factors) * (plan.seconds + plan.ramp_s)
    steps = slower * (WARM_S + plan.seconds / 2 + closed + opened)
    pauses = 1.5 * len(plan.mixes) * (len(plan.factors) + 3)
    return (plan.rounds * len(plan.peers) + 0.3) * (12 + steps + pauses)


def _told(step: Step, plan: Plan) -> str:
    p50, p99 = (percentile(step.latencies_ms, percent) for percent in (50, 99))
    return (
        f"{step.round + 1} {step.peer} {step.mix} {step.load}: {step.masks_rps:.1f} masks/s, "
        f"{step.good_rps(plan.good_s):.1f} good/s, p50 {p50} p99 {p99} ms, {step.statuses}"
    )


def _sizes(paths: list[Path]) -> tuple[int, float]:
    return len(set(paths)), sum(path.stat().st_size for path in paths) / len(paths) / 1024


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} processors"
