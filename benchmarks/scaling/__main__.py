"""The command line: `measure` and `report`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.scaling.measure import PARTS, Benchmark, Effort
from benchmarks.scaling.report import PAGE, write_report
from benchmarks.scaling.results import load_run

SMOKE = Effort(1, 2.0, 2.0, photos=1, replicas=(1, 2), servers=(1, 2))


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=sys.modules["benchmarks.scaling"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    measure = commands.add_parser("measure", help="measure; writes one JSON file")
    measure.add_argument("--out", type=Path, required=True, help="the JSON file")
    measure.add_argument("--parts", default=",".join(PARTS), help="[%(default)s]")
    measure.add_argument("--rounds", type=int, default=Effort.rounds, help="[%(default)s]")
    measure.add_argument(
        "--smoke", action="store_true", help="measure next to nothing, to see that it runs"
    )
    measure.set_defaults(do=_measure)
    report = commands.add_parser("report", help="write the tables of docs/scaling.md")
    report.add_argument("results", type=Path, help="JSON file of a run")
    report.add_argument("--page", type=Path, default=PAGE, help="[docs/scaling.md]")
    report.set_defaults(do=lambda given: write_report(load_run(given.results), given.page))
    given = parser.parse_args()
    given.do(given)


def _measure(given: argparse.Namespace) -> None:
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    effort = SMOKE if given.smoke else Effort(given.rounds)
    work = tempfile.mkdtemp(prefix="purnet-scaling-")
    print(f"logs: {work}/log.txt", file=sys.stderr, flush=True)
    Benchmark(given.out, Path(work), effort).measure(parts)


if __name__ == "__main__":
    main()
