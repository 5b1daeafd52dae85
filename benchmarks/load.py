"""Open-loop load from a fifth to three times what the service can do: `python -m benchmarks.load`.

Requests leave when they are due (Poisson arrivals, fixed seed), whether or not earlier ones came
back, as they do when many people use a service; and latency counts from that moment. A closed loop
would slow down with the service and hide what overload does to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from benchmarks.service_under_test import Memory, memory, started

FACTORS = (0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
SEED = 1
SAMPLE = Path(__file__).parent.parent / "model" / "weights" / "self_check.png"
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
CLOSED_CLIENTS = 32
"""Enough to keep every batch full while the capacity is found."""


@dataclass(frozen=True)
class Photo:
    """One upload."""

    body: bytes
    content_type: str


@dataclass
class Step:
    """What happened at one rate."""

    factor: float
    offered_rps: float
    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    """Of the requests that got a mask."""
    in_time: int = 0
    """Masks that came while requests were still being sent: what the goodput counts."""
    others: Counter[str] = field(default_factory=Counter)
    """Answers that were no mask, by status; `error` where there was no answer at all."""
    memory: Memory | None = None

    @property
    def goodput_rps(self) -> float:
        """Masks per second."""
        return self.in_time / self.seconds

    @property
    def refused(self) -> int:
        """Requests turned away at the door."""
        return self.others["429"] + self.others["503"]

    def percentile_s(self, percent: float) -> float:
        """Nearest-rank percentile of the latency of requests that got a mask."""
        ordered = sorted(self.latencies_s)
        if not ordered:
            return float("nan")
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


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
    client: httpx.AsyncClient, photos: list[Photo], factor: float, rate_rps: float, seconds: float
) -> Step:
    """Send at one rate, then wait for what is still under way."""
    loop = asyncio.get_running_loop()
    chance = random.Random(SEED)
    step = Step(factor, rate_rps, seconds)
    began_s = loop.time()
    sent: set[asyncio.Task[None]] = set()
    all_sent = asyncio.Event()

    async def one(due_s: float, photo: Photo) -> None:
        status = await post(client, photo)
        if status == "200":
            step.latencies_s.append(loop.time() - due_s)
            step.in_time += loop.time() < began_s + seconds
        else:
            step.others[status] += 1

    def send(due_s: float, photo: Photo) -> None:
        sent.add(loop.create_task(one(due_s, photo)))

    due_s = began_s
    while (due_s := due_s + chance.expovariate(rate_rps)) < began_s + seconds:
        loop.call_at(due_s, send, due_s, chance.choice(photos))
    loop.call_at(began_s + seconds, all_sent.set)
    await all_sent.wait()
    step.memory = await memory(client)
    await asyncio.gather(*sent)
    return step


async def measure(
    url: str, photos: list[Photo], seconds: float, factors: list[float]
) -> list[Step]:
    """Find the capacity, then one step per factor of it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=limits, trust_env=False
    ) as client:
        await capacity_rps(client, photos, min(5.0, seconds))  # caches fill, clocks rise
        capacity = await capacity_rps(client, photos, seconds)
        print(f"capacity {capacity:.1f} masks/s with {CLOSED_CLIENTS} clients", file=sys.stderr)
        steps = []
        for factor in factors:
            step = await open_loop(client, photos, factor, factor * capacity, seconds)
            print(row(step), file=sys.stderr)
            steps.append(step)
        return steps


def row(step: Step) -> str:
    """A line of the table."""
    unhappy = sum(step.others.values()) - step.refused
    held = step.memory or Memory(0, 0)
    return (
        f"| {step.factor:g} | {step.offered_rps:.1f} | {step.goodput_rps:.1f} "
        f"| {step.percentile_s(50) * 1000:.0f} | {step.percentile_s(95) * 1000:.0f} "
        f"| {step.percentile_s(99) * 1000:.0f} | {step.refused} | {unhappy} "
        f"| {held.api:.0f} | {held.workers:.0f} |"
    )


def report(steps: list[Step], photos: list[Photo]) -> str:
    """The table, and what it says about overload."""
    peak = max(step.goodput_rps for step in steps)
    last = steps[-1]
    kib = sum(len(photo.body) for photo in photos) / len(photos) / 1024
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"{platform.processor() or platform.machine()}, {cpus} CPUs shared with the load "
        f"generator; {len(photos)} photos of {kib:.0f} KiB on average; {last.seconds:g} s a step.",
        "",
        "| of capacity | offered/s | masks/s | p50 ms | p95 ms | p99 ms | refused | failed "
        "| API MiB | workers MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
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
    parser.add_argument("--seconds", type=float, default=20, help="length of each step [20]")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="[%(default)s]")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for the service")
    parser.add_argument("--out", type=Path, help="folder for load.md and load.json")
    options = parser.parse_args()
    photos = read_photos(options.photos, options.most)
    factors = [float(factor) for factor in options.factors.split(",")]
    service = nullcontext(options.url) if options.url else started(options.set)
    with service as url:
        steps = asyncio.run(measure(url, photos, options.seconds, factors))
    text = report(steps, photos)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "load.md").write_text(text + "\n")
        # `asdict` would rebuild the counter from its pairs, and count those.
        told = [{**vars(step), "memory": step.memory and asdict(step.memory)} for step in steps]
        (options.out / "load.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
