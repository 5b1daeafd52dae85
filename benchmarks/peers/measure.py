"""The order of things: our capacity first, then rounds of all peers, A B C A B C, step by step.

A machine is faster in one minute than in the next; in rounds that meets all peers alike, and a
ratio of two peers compares the same round. The result is written after every step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import gate
from benchmarks.peers.environments import BASELINE, ROOT, commit, versions
from benchmarks.peers.generator import OK, Load
from benchmarks.peers.peers import OURS, PEERS, Peer
from benchmarks.peers.photos import gate_photos, photos_of
from benchmarks.peers.plan import (
    CLIENTS,
    CLOSED_RAMP_S,
    SLOWER,
    WARM_S,
    Places,
    Plan,
    machine,
    places,
)
from benchmarks.peers.processes import idle_processors
from benchmarks.peers.results import (
    About,
    Run,
    Start,
    Step,
    counted,
    percentile,
    sent_late_p99_ms,
)
from benchmarks.peers.server import Limits, Server, running

from purnet.imaging import UInt8Array

WARM_CLIENTS = 4
SAFETY = 0.7
"""Share of what our capacity answers within the deadline that peers let wait: rates vary."""
SMOKE_REQUESTS = 5


@dataclass
class Benchmark:
    """A run: what is sent, to whom, from where, and what came of it so far."""

    plan: Plan
    work: Path
    """Folder of the environments."""
    out: Path
    """The JSON file."""
    places: Places
    photos: dict[str, list[Path]]
    gate_photos: list[bytes]
    run: Run
    wanted: list[UInt8Array] = field(default_factory=list)
    """Our masks of the gate's photos."""

    def check(self, *, smoke: bool = False) -> None:
        """Pass every peer through the gate; with `smoke` ask each five times as well.

        Without the limits of a deadline, which refuse what comes all at once.
        """
        with self._started(PEERS[OURS], None) as ours:
            self.wanted = gate.masks_of(ours, self.gate_photos, at_once=1)
        for name in self.plan.peers:
            with self._started(PEERS[name], None) as server:
                about = self._about(server)
                about.gate = gate.check(server, self.gate_photos, self.wanted)
                self.run.peers[name] = about
                if smoke:
                    about.smoke_ms = self._ask(server)
                self._save()
                print(_checked(server, about), file=sys.stderr, flush=True)
            if smoke and self.plan.tuning == "deadline":
                with self._started(PEERS[name], Limits(self.plan.good_s, CLIENTS)) as server:
                    print(f"{name}, limited: {self._ask(server)} ms", file=sys.stderr, flush=True)

    def measure(self) -> None:
        """The gate, our capacity, all rounds."""
        self.check()
        self._calibrate()
        for number in range(self.plan.rounds):
            for name in self.plan.peers:
                for limits, mixes in self._visits():
                    with self._started(PEERS[name], limits) as server:
                        idle = self._note_start(server, number)
                        for mix in mixes:
                            for step in self._steps(server, number, mix, idle):
                                self.run.steps.append(step)
                                self._save()
                                print(_told(step, self.plan), file=sys.stderr, flush=True)

    def _started(self, peer: Peer, limits: Limits | None) -> AbstractContextManager[Server]:
        return running(peer, self.places.server, self.work, self.gate_photos[0], limits)

    def _calibrate(self) -> None:
        """Our capacity in each mix."""
        with self._started(PEERS[OURS], None) as server:
            idle = idle_processors(server.tree, 1.0)
            for mix in self.plan.mixes:
                self._warm_up(server, mix, idle)
                step = self._step(server, 0, mix, idle, clients=CLIENTS, ramp_s=CLOSED_RAMP_S)
                self.run.capacity_rps[mix] = step.masks_rps
                self._save()
                print(f"capacity, {mix}: {step.masks_rps:.1f}/s", file=sys.stderr, flush=True)

    def _visits(self) -> Iterator[tuple[Limits | None, list[str]]]:
        """Starts of a peer in a round. A limit on what waits fits one mix."""
        if self.plan.tuning == "default":
            yield None, self.plan.mixes
            return
        for mix in self.plan.mixes:
            answered = SAFETY * self.run.capacity_rps[mix] * self.plan.good_s
            yield Limits(self.plan.good_s, max(2, int(answered))), [mix]

    def _about(self, server: Server) -> About:
        peer = server.peer
        settings = peer.settings
        if self.plan.tuning == "deadline":
            settings += f". Against late answers: {peer.deadline_settings}"
        installed = versions(peer.environment, self.work)
        named = {name: installed[name] for name in peer.packages if name in installed}
        return About(settings, named, peer.batches)

    def _ask(self, server: Server) -> list[float]:
        """Milliseconds of some requests, one by one."""
        took_ms = []
        for photo in self.gate_photos[:SMOKE_REQUESTS]:
            began_s = time.monotonic()
            server.post(photo).raise_for_status()
            took_ms.append(round((time.monotonic() - began_s) * 1000, 1))
        return took_ms

    def _note_start(self, server: Server, round_: int) -> float:
        idle = idle_processors(server.tree, 2.0)
        self.run.starts.append(Start(server.peer.name, round_, server.start_s, idle))
        self._save()
        return idle

    def _warm_up(self, server: Server, mix: str, idle: float) -> None:
        seconds = WARM_S * SLOWER[mix]
        self._step(server, 0, mix, idle, clients=WARM_CLIENTS, ramp_s=0.0, seconds=seconds)

    def _steps(self, server: Server, number: int, mix: str, idle: float) -> Iterator[Step]:
        """All steps of a mix on a running peer."""
        self._warm_up(server, mix, idle)
        half = self.plan.seconds * SLOWER[mix] / 2
        yield self._step(server, number, mix, idle, clients=1, ramp_s=CLOSED_RAMP_S, seconds=half)
        if self.plan.tuning == "default":  # else most of 16 clients are refused, and spin
            yield self._step(server, number, mix, idle, clients=CLIENTS, ramp_s=CLOSED_RAMP_S)
        for factor in self.plan.factors:
            yield self._step(server, number, mix, idle, factor=factor, ramp_s=self.plan.ramp_s)

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
        seconds = seconds or self.plan.seconds * SLOWER[mix]
        rate = None if factor is None else factor * self.run.capacity_rps[mix]
        load = Load(
            server.target,
            self.photos[mix],
            clients,
            rate,
            ramp_s,
            seconds,
            self.plan.timeout_s,
            seed=f"{mix} {number}",  # the same arrivals for every peer of a round
        )
        server.memory.take_mib()
        before_s, began_s = server.tree.cpu_s(), time.monotonic()
        outcome = server.offer(load, self.places.generator)
        took_s = time.monotonic() - began_s
        backlog_s = server.settle_s(idle, self.plan.patience_s)
        used_s = server.tree.cpu_s() - before_s
        masks = sum(request.status == OK for request in outcome.requests)
        statuses, latencies_ms, came_ms = counted(outcome.requests, ramp_s, seconds)
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
            came_ms=came_ms,
            cpu_ms_per_mask=used_s / masks * 1000 if masks else None,
            peak_rss_mib=server.memory.take_mib(),
            pss_mib=server.tree.pss_mib(),
            backlog_s=backlog_s,
            sent_late_p99_ms=sent_late_p99_ms(outcome),
            generator_processors=outcome.cpu_s / took_s,
        )

    def _save(self) -> None:
        self.run.save(self.out)


def prepared(plan: Plan, work: Path, photos: Path, out: Path) -> Benchmark:
    """A benchmark with its photos made, and this process on the generator's processors."""
    where = places(plan.mode)
    os.sched_setaffinity(0, where.generator)
    mixes = photos_of(photos, work, plan.mixes)
    run = Run(
        machine=machine(),
        commit=commit(ROOT),
        baseline=commit(work / BASELINE) if BASELINE in plan.peers else None,
        began=time.strftime("%Y-%m-%d %H:%M"),
        plan=plan,
        photos={mix: _sizes(paths) for mix, paths in mixes.items()},
        capacity_rps={},
    )
    return Benchmark(plan, work, out, where, mixes, gate_photos(photos), run)


def _checked(server: Server, about: About) -> str:
    strays = server.tree.strays(server.processors)
    return (
        f"{server.peer.name}: {about.gate}, five requests {about.smoke_ms} ms, started in "
        f"{server.start_s:.1f} s, {len(server.tree.members())} processes, "
        f"{server.tree.pss_mib():.0f} MiB"
        + (f"; {strays} processes may run elsewhere" if strays else "")
    )


def _told(step: Step, plan: Plan) -> str:
    p50, p99 = (percentile(step.latencies_ms, percent) for percent in (50, 99))
    return (
        f"{step.round + 1} {step.peer} {step.mix} {step.load}: {step.masks_rps:.1f} masks/s, "
        f"{step.good_rps(plan.good_s):.1f} good/s, p50 {p50} p99 {p99} ms, {step.statuses}"
    )


def _sizes(paths: list[Path]) -> tuple[int, float]:
    return len(set(paths)), sum(path.stat().st_size for path in paths) / len(paths) / 1024
