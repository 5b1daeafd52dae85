"""The command line: `install`, `run` and `report`."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from benchmarks.peers.environments import BASELINE, ENVIRONMENTS, ROOT, install
from benchmarks.peers.measure import prepared
from benchmarks.peers.peers import PEERS
from benchmarks.peers.plan import MIXES, Plan, about_seconds
from benchmarks.peers.processes import adopt_orphans
from benchmarks.peers.report import write_report
from benchmarks.peers.results import load_run
from platformdirs import user_cache_path

GOOD_S = {"default": 5.0, "deadline": 1.0}
RAMP = 1.6
"""Ramps in units of what is good: a queue without a limit, offered three times what it answers, has
grown longer than that after 1.5."""
PAGE = ROOT / "docs" / "benchmark.md"


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=sys.modules["benchmarks.peers"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_install(commands.add_parser("install", help="make or renew the environments"))
    _add_run(commands.add_parser("run", help="measure; writes one JSON file"))
    report = commands.add_parser("report", help="write docs/benchmark.md from results")
    report.add_argument("results", type=Path, nargs="+", help="JSON files of runs")
    report.add_argument("--out", type=Path, default=PAGE, help="[docs/benchmark.md]")
    report.set_defaults(
        do=lambda given: write_report(list(map(load_run, given.results)), given.out)
    )
    given = parser.parse_args()
    given.do(given)


def _add_install(parser: argparse.ArgumentParser) -> None:
    _add_work(parser)
    parser.add_argument("--peers", default=",".join(ENVIRONMENTS), help="[%(default)s]")
    parser.add_argument("--baseline", metavar="COMMIT", help=f"also install {BASELINE} at COMMIT")
    parser.set_defaults(do=_install)


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_work(parser)
    photos = os.environ.get("PEERS_PHOTOS")
    whole = ",".join(PEERS)
    add = parser.add_argument
    add(
        "--photos",
        type=Path,
        default=photos and Path(photos),
        help="a folder of JPEG photos [$PEERS_PHOTOS]",
    )
    add("--peers", default=whole, help="[%(default)s]")
    add(
        "--mode",
        choices=("core0", "both"),
        default="core0",
        help="core0: the server has the first "
        "processor, the generator the others; both: everything on all [%(default)s]",
    )
    add(
        "--tuning",
        choices=tuple(GOOD_S),
        default="default",
        help="deadline: each peer with what it has against late answers [%(default)s]",
    )
    add("--mixes", default=",".join(MIXES), help="[%(default)s]")
    add(
        "--factors",
        default="0.5,1,3",
        help="rates of the open loop, of our capacity; '' for none [%(default)s]",
    )
    add("--rounds", type=int, default=3, help="[%(default)s]")
    add(
        "--seconds",
        type=float,
        default=8,
        help="counted part of a step with small photos [%(default)s]",
    )
    add("--ramp", type=float, help="seconds of an open-loop step before it [1.6 times --good]")
    add(
        "--good",
        type=float,
        help="seconds within which an answer is good [1 with a deadline, else 5]",
    )
    add(
        "--timeout",
        type=float,
        default=10,
        help="seconds after which a client gives up [%(default)s]",
    )
    add(
        "--patience",
        type=float,
        default=60,
        help="most seconds to wait for abandoned work [%(default)s]",
    )
    add("--out", type=Path, help="the JSON file [a new one in the work folder]")
    add("--smoke", action="store_true", help="only start each peer, gate it, ask five times")
    parser.set_defaults(do=_run)


def _add_work(parser: argparse.ArgumentParser) -> None:
    work = os.environ.get("PEERS_WORK") or user_cache_path("purnet", appauthor=False) / "peers"
    parser.add_argument(
        "--work", type=Path, default=Path(work), help="folder of environments [$PEERS_WORK]"
    )


def _install(given: argparse.Namespace) -> None:
    names = given.peers.split(",") if given.peers else []
    _refuse_unknown(names, ENVIRONMENTS)
    extra = [BASELINE] if given.baseline else []
    install([*names, *extra], given.work.resolve(), baseline=given.baseline)


def _run(given: argparse.Namespace) -> None:
    if given.photos is None:
        raise SystemExit("say where photos are: --photos DIR or PEERS_PHOTOS")
    work = given.work.resolve()
    good_s = given.good or GOOD_S[given.tuning]
    plan = Plan(
        peers=given.peers.split(","),
        mode=given.mode,
        tuning=given.tuning,
        mixes=given.mixes.split(","),
        factors=[float(factor) for factor in given.factors.split(",") if factor],
        rounds=given.rounds,
        seconds=given.seconds,
        ramp_s=RAMP * good_s if given.ramp is None else given.ramp,
        good_s=good_s,
        timeout_s=given.timeout,
        patience_s=given.patience,
    )
    _refuse_unknown(plan.peers, PEERS)
    _refuse_unknown(plan.mixes, MIXES)
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server that runs is stopped as well
        signal.signal(number, lambda *_: sys.exit("stopped"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    name = time.strftime(f"%Y%m%d-%H%M%S-{plan.mode}-{plan.tuning}.json")
    out = given.out or work / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    benchmark = prepared(plan, work, given.photos, out.resolve())
    if given.smoke:
        benchmark.check(smoke=True)
    else:
        print(f"about {about_seconds(plan) / 60:.0f} minutes", file=sys.stderr, flush=True)
        benchmark.measure()
    print(out)


def _refuse_unknown(names: list[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")


if __name__ == "__main__":
    main()
