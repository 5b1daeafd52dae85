"""python folder.py FOLDER OUT [URL]: cutouts of a folder's photos, eight at a time."""

import os
import sys
from pathlib import Path

from purnet_serve.client import PurNetClient


def main(folder: Path, out: Path, url: str = "http://127.0.0.1:8000") -> int:
    """Write a cutout of every photo; return how many failed."""
    failed = 0
    out.mkdir(parents=True, exist_ok=True)
    photos = sorted(path for path in folder.iterdir() if path.is_file())
    with PurNetClient(url, api_key=os.environ.get("PURNET_API_KEY")) as client:
        for outcome in client.many(photos, output="cutout", concurrency=8, progress=show):
            if outcome.error is not None:
                failed += 1
                print(f"\n{outcome.photo}: {outcome.error}", file=sys.stderr)
            else:
                outcome.result.save(out / f"{outcome.photo.stem}.png")
    return failed


def show(done: int, total: int | None) -> None:
    """Say how far it is."""
    print(f"\r{done} of {total}", end="", file=sys.stderr)


if __name__ == "__main__":
    folder, out, *url = sys.argv[1:]
    sys.exit(min(main(Path(folder), Path(out), *url), 1))
