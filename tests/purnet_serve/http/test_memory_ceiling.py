"""Memory of a real service, workers and all, under the worst that fits its limits."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
from photos import encoded, scene
from PIL import Image
from service_process import END_S, running

from purnet_serve.http.context import memory_ceiling_bytes
from purnet_serve.settings import MIB, Settings

LIMITS = {
    "max_pixels": 6_000_000,
    "max_body_bytes": 16 * MIB,
    "max_requests_in_flight": 16,
    "max_bytes_in_flight": 64 * MIB,
    "max_answer_bytes": 64 * MIB,
    "max_pixel_bytes": 256 * MIB,
}
WORKER_BYTES = 1024 * MIB
"""What the process with the model may take: the engine's own code, weights and one batch."""


def peak_bytes(pid: int) -> int:
    """Most resident memory this process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def worst() -> list[bytes]:
    width, height = 3000, 2000
    clear = scene(width, height)
    clear.putalpha(Image.linear_gradient("L").resize((width, height)))
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    return [
        encoded(clear, "WEBP", lossless=True, quality=0, method=0),
        encoded(clear, "PNG", compress_level=1),
        encoded(clear, "AVIF", speed=10, subsampling="4:4:4"),
        encoded(clear.convert("CMYK"), "JPEG", progressive=True),
        encoded(Image.fromarray(noise).convert("RGB"), "JPEG", quality=60),
        encoded(Image.fromarray(noise.astype(np.uint16) * 257), "PNG", compress_level=9)[
            : 16 * MIB
        ],
    ]


def test_memory_stays_below_the_sum_of_the_limits() -> None:
    settings = Settings(**LIMITS)  # type: ignore[arg-type]
    environment = {f"PURNET_{name}".upper(): str(value) for name, value in LIMITS.items()}
    script = str(Path(sys.executable).parent / "purnet")
    uploads = worst()
    arguments = [script, "serve", "--port", "0", "--device", "cpu", "--set", "timeout_s=60"]
    with running(arguments, **environment) as process:
        url = process.await_line("ready at", process.lines).split()[4]

        def post(number: int) -> int:
            answer = httpx.post(
                f"{url}/v1/mask?output={'cutout' if number % 3 else 'mask'}"
                f"&format={'webp' if number % 2 else 'png'}",
                content=uploads[number % len(uploads)],
                timeout=END_S,
                trust_env=False,
            )
            return answer.status_code

        with ThreadPoolExecutor(12) as threads:
            statuses = list(threads.map(post, range(16)))
        api = psutil.Process(process.process.pid)
        workers = api.children(recursive=True)
        peaks = [peak_bytes(worker.pid) for worker in workers]
        total = peak_bytes(api.pid) + sum(peaks)
    assert 200 in statuses
    assert set(statuses) <= {200, 422, 429, 504}
    assert max(peaks) > 10 * MIB, "a worker without memory was measured"
    assert total <= memory_ceiling_bytes(settings) + WORKER_BYTES
