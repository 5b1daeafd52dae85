"""The order of things: each part goes through its candidates in rounds, A B C A B C.

A shared machine is a tenth faster or slower from one minute to the next; in rounds that meets all
candidates alike, and a ratio of two compares the same round.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import generator
from benchmarks.peers.environments import ROOT, commit
from benchmarks.peers.generator import OK, Outcome, Request
from benchmarks.peers.plan import machine
from benchmarks.scaling import stages
from benchmarks.scaling.engine import Sleep
from benchmarks.scaling.processes import MODEL_NODE, Child, Group, Offer, child, post
from benchmarks.scaling.results import Deployment, Growth, Load, Run, Transport
from benchmarks.service_under_test import Processors, processors

LOCAL, ONE_NODE, TWO_NODES = "local", "Ray, one node", "Ray, two nodes"
WAYS = {"in the call": False, "through the object store": True}
CLI = ("-c", "from purnet_serve.cli import app; app()", "serve", "--port", "0")
SERVER = ("-m", "benchmarks.scaling.serve")
HANDLE = ("-m", "benchmarks.scaling.handle")
CLUSTER = ("-m", "benchmarks.scaling.cluster", "--nodes")

PHOTO = 640, 480

CLIENTS = 8
"""Of a deployment that is kept busy."""
REPLICAS = (1, 2, 4, 8)
SERVERS = (1, 4)
IMAGE_S = 0.1
"""What the sleeping engine takes for an image."""
CLIENTS_A_REPLICA = 4
"""So that none is idle while others have more than one image."""
LOADED_REPLICAS = (2, 8)
REPLICA_FACTORS = (0.5, 0.8)
SERVICE_FACTORS = (0.3, 0.6, 0.85, 1.3)
TARGET_S = 1.0
"""Of the service to which rates are offered: so short that its queue soon is as long as it gets."""
RAMP_S, LOADED_RAMP_S, IDLE_S = 1.0, 4.0, 2.0
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Effort:
    """How long to measure. The default takes about ten minutes on two processors."""

    rounds: int = 3
    seconds: float = 4.0
    """Counted part of a step."""
    loaded_s: float = 10.0
    """The same where rates are offered, of which percentiles are wanted."""
    photos: int = 10
    """Of each size and round in which stages are measured."""
    replicas: tuple[int, ...] = REPLICAS
    servers: tuple[int, ...] = SERVERS


@dataclass
class Benchmark:
    """A run: where it puts its files, and what came of it so far."""

    out: Path
    """The JSON file, written after every part."""
    work: Path
    """Folder for the photo, checkpoints and logs."""
    effort: Effort
    where: Processors = field(default_factory=processors)
    run: Run = field(
        default_factory=lambda: Run(machine(), commit(ROOT), time.strftime("%Y-%m-%d %H:%M"))
    )

    def __post_init__(self) -> None:
        self.photo = self.work / "photo.jpg"
        self.photo.write_bytes(stages.photo(*PHOTO))
        self.log = self.work / "log.txt"

    def measure(self, parts: list[str]) -> None:
        """Measure some of the parts."""
        for part in parts:
            began_s = time.monotonic()
            PARTS[part](self)
            self.run.save(self.out)
            print(f"{part}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)

    # --- the parts

    def measure_stages(self) -> None:
        """Processor time of one photo."""
        self.run.stages = list(stages.measure(self.effort.photos, self.effort.rounds))

    def measure_deployments(self) -> None:
        """The same engine on this machine, and behind Ray on one node and on two."""
        one_thread = {"PURNET_ENGINE_THREADS": "1"}  # what Ray gives a replica by default
        with ExitStack() as stack:
            found = {LOCAL: [self._server(stack, CLI, **one_thread)]}
            urls = {LOCAL: found[LOCAL][0].url()}
            # One after the other: Ray gives a node 30 s to start.
            for name, nodes in ((ONE_NODE, 1), (TWO_NODES, 2)):
                cluster = self._cluster(stack, nodes, self.where.service)
                server = self._server(stack, CLI, **on_ray(cluster.line()), **one_thread)
                found[name], urls[name] = [server, cluster], server.url()
            for number in range(self.effort.rounds):
                for name, url in urls.items():
                    deployment = self._deployment(name, number, url, Group(found[name]))
                    self.run.deployments.append(deployment)

    def measure_transports(self) -> None:
        """Pixels in the call itself, or through Ray's object store."""
        with ExitStack() as stack:
            cluster = self._cluster(stack, 2, None)
            settings = on_ray(cluster.line())
            settings["PURNET_CHECKPOINT"] = str(Sleep(0.0).save(self.work / "nothing.json"))
            driver = stack.enter_context(child(HANDLE, self.log, settings))
            driver.line()
            for round_ in range(self.effort.rounds):
                for name, by_reference in WAYS.items():
                    transport = self._transport(
                        name, by_reference, round_, driver, Group([driver, cluster])
                    )
                    self.run.transports.append(transport)

    def measure_replicas(self) -> None:
        """Model replicas whose engine sleeps, at the handle: growth, and rates."""
        with ExitStack() as stack:
            cluster = self._cluster(stack, 1, None)
            address = cluster.line()
            sleep = Sleep(IMAGE_S).save(self.work / "sleep.json")
            drivers: dict[int, Child] = {}
            for number in self.effort.replicas:
                settings = on_ray(address, app=f"replicas-{number}", replicas=number)
                settings["PURNET_CHECKPOINT"] = str(sleep)
                drivers[number] = stack.enter_context(child(HANDLE, self.log, settings))
                drivers[number].line()
            for round_ in range(self.effort.rounds):
                for number, driver in drivers.items():
                    growth = self._growth(number, round_, driver, Group([driver, cluster]))
                    self.run.replicas.append(growth)
            single_rps = statistics.median(
                one.masks_rps for one in self.run.replicas if one.number == 1
            )
            for number in (one for one in LOADED_REPLICAS if one in drivers):
                for factor in REPLICA_FACTORS:
                    load = self._replica_load(number, factor, single_rps, drivers[number])
                    self.run.replica_loads.append(load)

    def measure_servers(self) -> None:
        """Servers before replicas whose engine costs nothing: HTTP and codec are the limit."""
        with ExitStack() as stack:
            cluster = self._cluster(stack, 1, self.where.service)
            settings = on_ray(cluster.line(), replicas=2)
            nothing = Sleep(0.0).save(self.work / "nothing.json")
            settings |= {"PURNET_CHECKPOINT": str(nothing), "PURNET_PORT": "0"}
            # The first one deploys: others would at the same time.
            servers = [self._server(stack, SERVER, **settings)]
            urls = [servers[0].url()]
            for number in range(1, max(self.effort.servers)):
                servers.insert(number, self._server(stack, SERVER, **settings))
            urls += [server.url() for server in servers[1:]]
            for round_ in range(self.effort.rounds):
                for number in self.effort.servers:
                    rps, cpu_ms = self._busy(urls[:number], Group([*servers, cluster]))
                    self.run.servers.append(Growth(number, round_, rps, cpu_ms))

    def measure_service(self) -> None:
        """Rates offered to one service with the shipped network."""
        with ExitStack() as stack:
            server = self._server(stack, CLI, PURNET_TARGET_LATENCY_S=str(TARGET_S))
            url = server.url()
            self._send([url], clients=1, seconds=self.effort.seconds)  # caches fill
            (alone,) = self._send([url], clients=1, seconds=self.effort.seconds)
            alone_ms = latencies_ms(alone, RAMP_S, self.effort.seconds)
            capacity_rps, _ = self._busy([url], Group([server]))
            places = len(self.where.service or (0,))
            scale = places / capacity_rps * 1000 / statistics.fmean(alone_ms)
            service_ms = [ms * scale for ms in alone_ms]
            for factor in SERVICE_FACTORS:
                rate, seconds = factor * capacity_rps, self.effort.loaded_s
                (outcome,) = self._send([url], rate=rate, seconds=seconds, ramp_s=LOADED_RAMP_S)
                took_ms = latencies_ms(outcome, LOADED_RAMP_S, seconds)
                due = len(due_in(outcome, LOADED_RAMP_S, seconds))
                offered_rps, refused = due / seconds, due - len(took_ms)
                load = Load(
                    places, factor, offered_rps, seconds, took_ms, refused, service_ms, TARGET_S
                )
                self.run.service_loads.append(load)

    # --- what they share

    def _server(self, stack: ExitStack, arguments: Sequence[str], **settings: str) -> Child:
        server = child(arguments, self.log, settings, on=self.where.service, terminate=True)
        return stack.enter_context(server)

    def _cluster(self, stack: ExitStack, nodes: int, on: frozenset[int] | None) -> Child:
        return stack.enter_context(child([*CLUSTER, str(nodes)], self.log, on=on))

    def _deployment(self, name: str, round_: int, url: str, group: Group) -> Deployment:
        idle = group.busy_processors(IDLE_S)
        (alone,) = self._send([url], clients=1, seconds=self.effort.seconds)
        rps, cpu_ms = self._busy([url], group)
        took_ms = latencies_ms(alone, RAMP_S, self.effort.seconds)
        return Deployment(name, round_, took_ms, rps, cpu_ms, idle, group.pss_mib())

    def _transport(
        self, name: str, by_reference: bool, round_: int, driver: Child, group: Group
    ) -> Transport:
        seconds = self.effort.seconds / 2
        alone, busy = (
            Offer(clients, None, RAMP_S / 2, seconds, by_reference=by_reference)
            for clients in (1, CLIENTS)
        )
        alone_ms = driver.offer(alone).latencies_ms
        before_s = group.cpu_s()
        offered = driver.offer(busy)
        cpu_ms = (group.cpu_s() - before_s) / offered.images * 1000
        return Transport(name, round_, alone_ms, len(offered.latencies_ms) / seconds, cpu_ms)

    def _growth(self, number: int, round_: int, driver: Child, group: Group) -> Growth:
        before_s = group.cpu_s()
        clients = number * CLIENTS_A_REPLICA
        offered = driver.offer(Offer(clients, None, RAMP_S, self.effort.seconds))
        cpu_ms = (group.cpu_s() - before_s) / offered.images * 1000
        return Growth(number, round_, len(offered.latencies_ms) / self.effort.seconds, cpu_ms)

    def _replica_load(self, number: int, factor: float, rps: float, driver: Child) -> Load:
        """Offer a part of `number` times what a single replica answers, `rps`.

        Arrivals of a few seconds are far from their rate: several windows, and what came in them.
        """
        rate, window_s = factor * number * rps, self.effort.loaded_s
        windows = [
            driver.offer(Offer(None, rate, RAMP_S, window_s, seed=seed))
            for seed in range(self.effort.rounds)
        ]
        latencies_ms = sorted(ms for window in windows for ms in window.latencies_ms)
        failed = sum(window.failed for window in windows)
        seconds = window_s * len(windows)
        offered_rps = (len(latencies_ms) + failed) / seconds
        return Load(number, factor, offered_rps, seconds, latencies_ms, failed, [1000 / rps], None)

    def _busy(self, urls: list[str], group: Group) -> tuple[float, float]:
        """Masks a second with clients that never pause, and milliseconds of a processor a mask."""
        before_s, seconds = group.cpu_s(), self.effort.seconds
        outcomes = self._send(urls, clients=CLIENTS, seconds=seconds)
        used_s = group.cpu_s() - before_s
        masks = sum(request.status == OK for one in outcomes for request in one.requests)
        if not masks:
            raise SystemExit(f"no mask came from {urls}; {self.log} may say why")
        came = [
            request
            for one in outcomes
            for request in one.requests
            if request.status == OK and RAMP_S <= request.answered_s < RAMP_S + seconds
        ]
        return len(came) / seconds, used_s / masks * 1000

    def _send(
        self,
        urls: list[str],
        *,
        clients: int | None = None,
        rate: float | None = None,
        seconds: float,
        ramp_s: float = RAMP_S,
    ) -> list[Outcome]:
        """Send the photo to all of them at the same time; each gets its part of the clients."""
        each = None if clients is None else max(1, clients // len(urls))
        loads = [
            generator.Load(
                generator.Target(f"{url}/v1/mask", {}, None, {}),
                [self.photo],
                each,
                rate,
                ramp_s,
                seconds,
                TIMEOUT_S,
                seed=url,
            )
            for url in urls
        ]
        with ThreadPoolExecutor(len(urls)) as threads:
            return list(threads.map(lambda load: post(load, self.where.generator), loads))


PARTS = {
    "stages": Benchmark.measure_stages,
    "deployments": Benchmark.measure_deployments,
    "transports": Benchmark.measure_transports,
    "replicas": Benchmark.measure_replicas,
    "servers": Benchmark.measure_servers,
    "service": Benchmark.measure_service,
}


def on_ray(address: str, *, app: str = "purnet", replicas: int = 1) -> dict[str, str]:
    """Settings of a server before replicas on the node that has room for them."""
    return {
        "PURNET_BACKEND": "ray",
        "PURNET_RAY_ADDRESS": address,
        "PURNET_RAY_APP": app,
        "PURNET_RAY_MIN_REPLICAS": str(replicas),
        "PURNET_RAY_RESOURCES": json.dumps({MODEL_NODE: 1}),
    }


def due_in(outcome: Outcome, ramp_s: float, seconds: float) -> list[Request]:
    """Requests that were due in the counted part."""
    return [r for r in outcome.requests if ramp_s <= r.due_s < ramp_s + seconds]


def latencies_ms(outcome: Outcome, ramp_s: float, seconds: float) -> list[float]:
    """Of the masks among them, ascending."""
    return sorted(
        (request.answered_s - request.due_s) * 1000
        for request in due_in(outcome, ramp_s, seconds)
        if request.status == OK
    )
