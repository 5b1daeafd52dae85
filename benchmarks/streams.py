"""What threads on one image cost against a stream an image: `python -m benchmarks.streams`.

The shipped network on OpenVINO, with the preprocessing and precision of the service: 1 image and 16
images, each way several times in turns. Prints the least milliseconds an image, by the clock and of
processor time, and the memory of a process that has run that way alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from purnet.cpus import available_cpus
from purnet.inference.openvino_engine import DEFAULT_EXPORT, OpenVinoEngine, load, read_info

IMAGES = 16
SIZE = read_info(DEFAULT_EXPORT).input_size

Run = Callable[[int], None]


def ways(engine: OpenVinoEngine) -> dict[str, Run]:
    """Ways to compute a number of images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    one_by_one = [pixels[index : index + 1] for index in range(IMAGES)]
    threads = ThreadPoolExecutor(engine.streams)
    request = engine._idle_request
    if request is None:
        raise SystemExit("One thread is one stream: there is nothing to compare.")

    def in_batches(of: int) -> Run:
        def run(images: int) -> None:
            for start in range(0, images, of):
                # Past the engine, which never computes several in one request.
                request.infer([pixels[start : min(start + of, images)]], share_inputs=True)

        return run

    def a_stream_each(images: int) -> None:
        list(threads.map(engine, one_by_one[:images]))

    return {
        "all threads on each image": in_batches(1),
        "all threads on batches of 4": in_batches(4),
        "a stream an image": a_stream_each,
    }


def least_ms(run: Run, images: int) -> tuple[float, float]:
    """Milliseconds an image of one run, by the clock and of processor time."""
    began_s, used_s = time.perf_counter(), time.process_time()
    run(images)
    ended = time.perf_counter() - began_s, time.process_time() - used_s
    return ended[0] / images * 1000, ended[1] / images * 1000


def resident_mib() -> float:
    """Memory that this process has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    engine = load(DEFAULT_EXPORT, threads=arguments.threads)
    runs = ways(engine)
    if arguments.memory_of:
        runs[arguments.memory_of](IMAGES)
        print(round(resident_mib()))
        return
    print(f"{engine.streams} streams, least of {arguments.rounds} rounds; ms an image")
    print("| | 1 image | its processor time | 16 images | their processor time | MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    least = dict.fromkeys(((name, n) for name in runs for n in (1, IMAGES)), (np.inf, np.inf))
    for _ in range(arguments.rounds + 1):
        for name, images in least:
            clock_ms, used_ms = least_ms(runs[name], images)
            least_clock_ms, least_used_ms = least[name, images]
            least[name, images] = min(least_clock_ms, clock_ms), min(least_used_ms, used_ms)
    for name in runs:
        figures = [f"{ms:.0f}" for images in (1, IMAGES) for ms in least[name, images]]
        command = [sys.executable, "-m", "benchmarks.streams", "--memory-of", name]
        command += ["--threads", str(arguments.threads)]
        memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"| {name} | {' | '.join([*figures, memory])} |")


if __name__ == "__main__":
    main()
