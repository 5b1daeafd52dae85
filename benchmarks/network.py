"""How long one photo takes, by each way to run the network: `python -m benchmarks.network`.

`forward` computes every output of every level, as the released code does to predict; `predict` only
what the mask depends on; the engines are what serves. The ways take turns, round after round, so
that a busy machine slows all alike; what counts is each one's ratio to `forward`. Before anything
is timed, every way must agree with `forward` within the parity gate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from purnet.inference import openvino_engine as openvino
from purnet.inference.engine import EngineOutput
from purnet.inference.openvino_export import export
from purnet.inference.parity import mask_difference, self_check_pixels
from purnet.inference.torch_engine import EagerEngine, to_images, to_output
from purnet.network import checkpoint
from purnet.network.blocks import resize_logits
from purnet.network.checkpoint import CheckpointInfo, load
from purnet.network.variants import DEFAULT_VARIANT, build, get

Way = Callable[[], EngineOutput]


def ways(path: Path, input_size: int, folder: Path, threads: int) -> dict[str, Way]:
    """The same photo through each way to run a checkpoint."""
    pixels = self_check_pixels(input_size)
    images = to_images(pixels, torch.device("cpu")).contiguous()
    network = load(path)
    export(path, folder / "export")
    eager, compiled = EagerEngine(load(path)), openvino.load(folder / "export", threads=threads)

    def forward() -> EngineOutput:
        logits = network(images).saliency[0]
        return to_output(resize_logits(logits, images.shape[-2:]))

    return {
        "forward": forward,
        "predict": lambda: to_output(network.predict(images)),
        "eager engine": lambda: eager(pixels),
        "openvino engine": lambda: compiled(pixels),
    }


@torch.inference_mode()
def measure(found: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, way in found.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def random_checkpoint(variant: str, path: Path) -> None:
    """Weights of a variant nobody trained: speed does not depend on them."""
    torch.manual_seed(0)
    network = build(variant).eval()
    info = CheckpointInfo(variant, get(variant).input_size, attention=True)
    checkpoint.save(network.state_dict(), path, info, half=False)


def main() -> None:
    """Print a table: median milliseconds and how many times faster than `forward`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default=DEFAULT_VARIANT)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "weights.safetensors"
        random_checkpoint(options.variant, path)
        size = get(options.variant).input_size
        found = ways(path, size, Path(name), options.threads)
        with torch.inference_mode():
            reference = found["forward"]().masks
            for way, run in found.items():
                difference = mask_difference(run().masks, reference)
                if not difference.passes:
                    raise SystemExit(f"{way} differs from forward by {difference}")
        seconds = measure(found, options.rounds)
    baseline = seconds["forward"]
    print(f"{options.variant}, one {size} x {size} photo, {options.threads} threads")
    for way, times in seconds.items():
        ratios = [slow / fast for slow, fast in zip(baseline, times, strict=True)]
        print(
            f"{way:16} {1000 * statistics.median(times):8.1f} ms"
            f"  {statistics.median(ratios):5.2f} x forward"
        )


if __name__ == "__main__":
    main()
