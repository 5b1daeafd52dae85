"""Open-loop load from a fifth to three times what the service can do: `python -m benchmarks.load`.

Requests leave when they are due (Poisson arrivals, fixed seed), whether or not earlier ones came
back, as they do when many people use a service; and latency counts from that moment. A closed loop
would slow down with the service and hide what overload does to it.

A step begins with a ramp that is not counted, in which the queue gets as long as it will stay. A
service started here keeps off one processor, which is the generator's: sending costs time as well,
and three times the load would otherwise be paid by the service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from benchmarks.peers.results import percentile
from benchmarks.service_under_test import Memory, memory, processors, started

FACTORS = (0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
SEED = 1
SAMPLE = Path(__file__).parent.parent / "model" / "purnet" / "weights" / "self_check.png"
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
REFUSALS = ("429", "503")
CLOSED_CLIENTS = 32
"""Enough to keep every batch full while the capacity is found."""


@dataclass(frozen=True)
class Photo:
    """One upload."""

    body: bytes
    content_type: str


@dataclass
class Step:
    """What happened at one rate, ramps not counted."""

    factor: float
    offered_rps: float
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    """Of the masks that came."""
    others: Counter[str] = field(default_factory=Counter)
    """Answers that were no mask, by status; `error` where there was no answer at all."""
    lateness_s: float = 0.0
    """How late the generator was at worst: the step offered less than it says if this is long."""
    memory: Memory | None = None

    @property
    def goodput_rps(self) -> float:
        """Masks per second."""
        return len(self.latencies_s) / self.seconds

    @property
    def refused(self) -> int:
        """Requests turned away at the door."""
        return sum(self.others[status] for status in REFUSALS)

    def percentile_s(self, percent: float) -> float:
        """Nearest-rank percentile of the latency of requests that got a mask."""
        found = percentile(sorted(self.latencies_s), percent)
        return float("nan") if found is None else found


async def post(client: httpx.AsyncClient, photo: Photo) -> str:
    """Status of one request, `error` without one."""
    try:
        answer = await client.post(
            "/v1/mask", content=photo.body, headers={"Content-Type": photo.content_type}
        )
    except httpx.HTTPError:
        return "error"
    return str(answer.status_code)


async def capacity_rps(client: httpx.AsyncClient, photos: list[Photo], seconds: float) -> float:
    """Masks per second with a fixed number of clients that never pause."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    masks = 0

    async def ask(first: int) -> None:
        nonlocal masks
        number = first
        while loop.time() < began_s + seconds:
            status = await post(client, photos[number % len(photos)])
            masks += status == "200"
            number += CLOSED_CLIENTS

    await asyncio.gather(*(ask(first) for first in range(CLOSED_CLIENTS)))
    return masks / (loop.time() - began_s)


async def open_loop(
    client: httpx.AsyncClient,
    photos: list[Photo],
    step: Step,
    chance: random.Random,
    *,
    ramp_s: float,
    seconds: float,
) -> None:
    """Send at the step's rate, add to it what comes of it, and wait for what is still under way."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    counts_from_s = began_s + ramp_s
    ends_s = counts_from_s + seconds
    sent: set[asyncio.Task[None]] = set()
    all_sent = asyncio.Event()

    async def one(due_s: float, photo: Photo) -> None:
        status = await post(client, photo)
        now_s = loop.time()
        counts = counts_from_s <= now_s < ends_s
        if status == "200":
            if counts:
                step.latencies_s.append(now_s - due_s)
        elif counts or status not in REFUSALS:  # a failure counts whenever it comes
            step.others[status] += 1

    def send(due_s: float, photo: Photo) -> None:
        step.lateness_s = max(step.lateness_s, loop.time() - due_s)
        sent.add(loop.create_task(one(due_s, photo)))

    due_s = began_s
    while (due_s := due_s + chance.expovariate(step.offered_rps)) < ends_s:
        loop.call_at(due_s, send, due_s, chance.choice(photos))
    loop.call_at(ends_s, all_sent.set)
    await all_sent.wait()
    step.memory = await memory(client)
    step.seconds += seconds
    await asyncio.gather(*sent)


async def measure(
    url: str,
    photos: list[Photo],
    factors: list[float],
    *,
    rounds: int,
    ramp_s: float,
    seconds: float,
) -> list[Step]:
    """Find the capacity, then go through all factors of it, several times.

    A shared machine is a tenth faster or slower from one minute to the next; rounds spread that
    over all factors.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=limits, trust_env=False
    ) as client:
        await capacity_rps(client, photos, min(5.0, seconds))  # caches fill, clocks rise
        capacity = await capacity_rps(client, photos, seconds)
        if capacity == 0:
            raise SystemExit(f"No mask came from {url}; is it ready?")
        print(f"capacity {capacity:.1f} masks/s with {CLOSED_CLIENTS} clients", file=sys.stderr)
        steps = [Step(factor, factor * capacity) for factor in factors]
        for number in range(rounds):
            for step in steps:
                chance = random.Random(f"{SEED} {number}")
                await open_loop(client, photos, step, chance, ramp_s=ramp_s, seconds=seconds)
                print(f"round {number + 1}, so far {row(step)}", file=sys.stderr)
        return steps


def row(step: Step) -> str:
    """A line of the table."""
    unhappy = sum(step.others.values()) - step.refused
    held = step.memory or Memory(0, 0)
    return (
        f"| {step.factor:g} | {step.offered_rps:.1f} | {step.goodput_rps:.1f} "
        f"| {step.percentile_s(50) * 1000:.0f} | {step.percentile_s(95) * 1000:.0f} "
        f"| {step.percentile_s(99) * 1000:.0f} "
        f"| {step.refused / step.seconds:.1f} | {unhappy} | {step.lateness_s * 1000:.0f} "
        f"| {held.api:.0f} | {held.workers:.0f} |"
    )


def report(steps: list[Step], photos: list[Photo], where: str) -> str:
    """The table, and what it says about overload."""
    peak = max(step.goodput_rps for step in steps)
    last = steps[-1]
    kib = sum(len(photo.body) for photo in photos) / len(photos) / 1024
    lines = [
        f"{platform.processor() or platform.machine()}, {where}; {len(photos)} photos of "
        f"{kib:.0f} KiB on average; {last.seconds:g} s a rate, ramps not counted.",
        "",
        "| of capacity | offered/s | masks/s | p50 ms | p95 ms | p99 ms | refused/s | failed "
        "| sent late by ms | API MiB | workers MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(row(step) for step in steps),
        "",
        f"Goodput at {last.factor:g} times capacity: {last.goodput_rps / peak:.0%} of its peak "
        f"({last.goodput_rps:.1f} of {peak:.1f} masks/s). Latency is that of requests that got a "
        "mask, from the moment they were due.",
    ]
    return "\n".join(lines)


def read_photos(folder: Path | None, most: int) -> list[Photo]:
    """The shipped photo, or the first `most` of a folder."""
    paths = [SAMPLE] if folder is None else sorted(folder.iterdir())
    known = [path for path in paths if path.suffix.lower() in TYPES][:most]
    if not known:
        raise SystemExit(f"no JPEG, PNG or WebP in {folder}")
    return [Photo(path.read_bytes(), TYPES[path.suffix.lower()]) for path in known]


def main() -> None:
    """Parse the command line, measure, print the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--url", help="a running service [one is started for this]")
    parser.add_argument("--photos", type=Path, help="folder of photos to send [the shipped one]")
    parser.add_argument("--most", type=int, default=64, help="photos read from the folder [64]")
    parser.add_argument("--seconds", type=float, default=12, help="counted part of a step [12]")
    parser.add_argument("--ramp", type=float, default=8, help="seconds of a step before it [8]")
    parser.add_argument("--rounds", type=int, default=3, help="steps at each rate [3]")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="[%(default)s]")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for the service")
    parser.add_argument("--out", type=Path, help="folder for load.md and load.json")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0 or options.ramp < 0:
        parser.error("--rounds is at least 1, --seconds more than 0, --ramp not less")
    photos = read_photos(options.photos, options.most)
    factors = [float(factor) for factor in options.factors.split(",")]
    where = processors()
    service = nullcontext(options.url) if options.url else started(options.set, where)
    with service as url:
        steps = asyncio.run(
            measure(
                url,
                photos,
                factors,
                rounds=options.rounds,
                ramp_s=options.ramp,
                seconds=options.seconds,
            )
        )
    text = report(steps, photos, "a service that was running" if options.url else str(where))
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "load.md").write_text(text + "\n")
        # `asdict` would rebuild the counter from its pairs, and count those.
        told = [{**vars(step), "memory": step.memory and asdict(step.memory)} for step in steps]
        (options.out / "load.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
