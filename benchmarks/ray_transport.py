"""What it takes to send pixels to a replica of Ray Serve and a mask back, by each way there is.

    python -m benchmarks.ray_transport

Starts a Ray of its own with one replica that computes nothing, and prints latency, and processor
time of the caller, of the replica and of Ray's other processes, a call. The ways take turns, so
that they share the machine's good and bad moments; the figures are medians of the rounds.

- object store: the call's argument is put into Ray's shared memory, and the replica reads it there,
  which is what Ray does with arguments of more than 100 KB by itself;
- in parts: arguments of less than that, which travel with the call; the mask goes the first way;
- gRPC: server and replica talk to each other, and Ray's core has no part in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import ray
from ray import serve

from purnet_serve.http.event_loop import new_event_loop

PIXELS = os.urandom(320 * 320 * 3)
MASK_BYTES = 320 * 320
PART_BYTES = len(PIXELS) // 4

Call = Callable[[], Awaitable[Any]]


@serve.deployment(
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},
)
class Echo:
    """Answers bytes of a mask's size at once."""

    async def __call__(self, *parts: bytes) -> bytes:
        """The beginning of the pixels."""
        return b"".join(parts)[:MASK_BYTES]

    async def stream(self, *parts: bytes) -> AsyncIterator[bytes]:
        """The same, as the only item of a stream."""
        yield await self(*parts)


def ways() -> dict[str, Call]:
    """The calls to compare, by name."""
    stored = serve.get_app_handle("echo").options(_by_reference=True)
    direct = stored.options(method_name="stream", stream=True, _by_reference=False)
    starts = range(0, len(PIXELS), PART_BYTES)

    async def put() -> Any:
        return await stored.remote(ray.put(PIXELS))

    async def parts() -> Any:
        return await stored.remote(*(PIXELS[start : start + PART_BYTES] for start in starts))

    async def grpc() -> Any:
        return await anext(direct.remote(PIXELS))

    return {"object store": put, "in parts": parts, "gRPC": grpc}


def processor_s() -> dict[str, float]:
    """Seconds of processor time so far: of this process, the replica, and the rest of Ray."""
    found = {"caller": 0.0, "replica": 0.0, "rest of Ray": 0.0}
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            times, title = process.cpu_times(), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        whose = "replica" if "ServeReplica" in title else "rest of Ray"
        found["caller" if process is here else whose] += times.user + times.system
    return found


async def measure(call: Call, calls: int, clients: int) -> dict[str, float]:
    """Median latency, and processor time of each process a call, in milliseconds."""
    latencies: list[float] = []
    numbers = iter(range(calls))

    async def client() -> None:
        for _ in numbers:
            began_s = time.perf_counter()
            answer = await call()
            latencies.append(time.perf_counter() - began_s)
            if len(answer) != MASK_BYTES:
                raise RuntimeError(f"{len(answer)} bytes came back")

    before = processor_s()
    await asyncio.gather(*(client() for _ in range(clients)))
    after = processor_s()
    spent = {whose: (after[whose] - before[whose]) / calls * 1000 for whose in after}
    return {"latency": statistics.median(latencies) * 1000, **spent}


async def compare(calls: int, rounds: int) -> None:
    """Print a table for one client that never pauses, and for eight."""
    await asyncio.to_thread(serve.start, proxy_location="Disabled")
    await asyncio.to_thread(serve.run, Echo.bind(), name="echo", route_prefix=None)
    found = await asyncio.to_thread(ways)
    for call in found.values():
        await measure(call, 50, 1)
    print("| way | clients | latency ms | caller ms | replica ms | rest of Ray ms | all ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for clients in (1, 8):
        results: dict[str, list[dict[str, float]]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, call in found.items():
                results[name].append(await measure(call, calls, clients))
        for name, several in results.items():
            row = {key: statistics.median(one[key] for one in several) for key in several[0]}
            spent = sum(value for key, value in row.items() if key != "latency")
            cells = " | ".join(f"{value:.1f}" for value in (*row.values(), spent))
            print(f"| {name} | {clients} | {cells} |")


def main() -> None:
    """Start Ray, compare, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200, help="of each way and round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=200 << 20,
    )
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(compare(arguments.calls, arguments.rounds))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
