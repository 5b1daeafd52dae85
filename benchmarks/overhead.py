"""Processor time of a request beside its codec: `python -m benchmarks.overhead`.

The service is real (sockets, queue, worker process), its engine costs nothing, and clients that
never pause send it photos of 400 pixels. Counted is the processor time of the API process, less
what its threads spend on decoding and encoding. On a GPU this bounds the masks a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

ROOT = Path(__file__).parent.parent
FAKES = ROOT / "tests" / "fakes"
SAMPLE = ROOT / "model" / "purnet" / "weights" / "self_check.png"
INPUT_SIZE = 320


class TimedExecutor(ThreadPoolExecutor):
    """Adds up the processor time of its calls: the codec's."""

    seconds = 0.0

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `ThreadPoolExecutor.submit`."""

        def timed() -> Any:
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                TimedExecutor.seconds += time.thread_time() - began

        return super().submit(timed)


def serve(checkpoint: Path) -> None:
    """Run the service; each line of standard input is answered with the times so far."""
    from fake_predictor import FACTORY

    from purnet_serve.http.server import run
    from purnet_serve.images import thread_pool
    from purnet_serve.inference.local import LocalBackend
    from purnet_serve.observability.http_metrics import Metrics
    from purnet_serve.observability.logging import configure_logging
    from purnet_serve.settings import Settings

    thread_pool.ThreadPoolExecutor = TimedExecutor  # type: ignore[attr-defined]
    settings = Settings(port=0, checkpoint=checkpoint, device="cpu", engine_threads=1)
    configure_logging(settings)

    def answer() -> None:
        for _ in sys.stdin:
            print(json.dumps([time.process_time(), TimedExecutor.seconds]), flush=True)

    threading.Thread(target=answer, daemon=True).start()
    metrics = Metrics()
    backend = LocalBackend(settings, metrics.inference, factory=FACTORY)
    run(settings, backend, metrics, lambda url: print(url, flush=True))


@contextmanager
def started() -> Iterator[tuple[str, Callable[[], list[float]]]]:
    """The service in a process of its own: its address, and its times when they are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "fake.json"
        checkpoint.write_text(json.dumps({"input_size": INPUT_SIZE}))
        paths = [str(ROOT), str(ROOT / "model"), str(ROOT / "service"), str(FAKES)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "benchmarks.overhead", "--serve", str(checkpoint)]
        pipe = subprocess.PIPE
        with (
            open(os.devnull, "w") as nowhere,  # noqa: PTH123
            subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, env=environment
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            asked, answers = process.stdin, process.stdout

            def times() -> list[float]:
                asked.write("\n")
                asked.flush()
                seconds: list[float] = json.loads(answers.readline())
                return seconds

            try:
                url = answers.readline().strip()
                if not url:
                    raise SystemExit("The service ended before it was ready.")
                yield url, times
            finally:
                process.terminate()
                process.wait(60)


async def send(url: str, photos: list[bytes], requests: int, clients: int) -> None:
    """Send photos over connections that are kept, each the next when it has its answer."""
    where = urlsplit(url)
    heads = [
        f"POST /v1/mask HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(photo)}\r\n\r\n".encode()
        for photo in photos
    ]
    left = iter(range(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        for number in left:
            which = number % len(photos)
            writer.write(heads[which] + photos[which])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(head.decode("latin-1"))
            length = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def read_photos(folder: Path | None) -> list[bytes]:
    """JPEG files of a folder, or the shipped photo as a JPEG of 400 by 300 pixels."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:100]]
    out = BytesIO()
    Image.open(SAMPLE).convert("RGB").resize((400, 300)).save(out, "JPEG", quality=90)
    return [out.getvalue()]


def main() -> None:
    """Measure, and print milliseconds of processor time a request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of JPEG files [the shipped photo]")
    parser.add_argument("--requests", type=int, default=1000, help="of a round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts [%(default)s]")
    parser.add_argument("--clients", type=int, default=8, help="[%(default)s]")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    photos = read_photos(options.photos)
    print("| masks/s | API process, ms | codec | beside the codec |\n|---:|---:|---:|---:|")
    with started() as (url, times):
        asyncio.run(send(url, photos, 200, options.clients))  # caches fill
        rows = []
        for _ in range(options.rounds):
            (process, codec), began = times(), time.perf_counter()
            asyncio.run(send(url, photos, options.requests, options.clients))
            seconds = time.perf_counter() - began
            now = times()
            each = [
                1000 * (b - a) / options.requests
                for a, b in zip((process, codec), now, strict=True)
            ]
            rows.append((each[0] - each[1], *each, options.requests / seconds))
        best = min(rows)
    print(f"| {best[3]:.0f} | {best[1]:.2f} | {best[2]:.2f} | {best[0]:.2f} |")


if __name__ == "__main__":
    main()
