"""The tables of docs/scaling.md, each between two comments that name it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.peers.environments import ROOT
from benchmarks.peers.results import percentile
from benchmarks.peers.tables import spread, table
from benchmarks.scaling.measure import LOCAL
from benchmarks.scaling.plan import INSTANCE, RATES, fullness, plan, processor_s_per_million
from benchmarks.scaling.queueing import mean_wait_s, simulate
from benchmarks.scaling.results import Deployment, Growth, Load, Run

PAGE = ROOT / "docs" / "scaling.md"
PLACES = (1, 2, 4, 8, 16, 64)
_BLOCK = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.S)


def write_report(run: Run, page: Path) -> None:
    """Renew every table of the page for which the run has figures."""

    def renewed(block: re.Match[str]) -> str:
        lines = TABLES[block["name"]](run)
        text = "\n".join(lines).strip()
        return f"{block[1]}\n{text}\n\n{block[3]}" if text else block[0]

    page.write_text(_BLOCK.sub(renewed, page.read_text(encoding="utf-8")), encoding="utf-8")


def conditions(run: Run) -> list[str]:
    """Where and when it was measured."""
    return [f"Measured on {run.machine}, {run.began}, commit {run.commit}."]


def deployments(run: Run) -> list[str]:
    """One engine, run in each way; what is added is the median over rounds."""
    if not run.deployments:
        return []
    local = {one.round: one for one in run.deployments if one.name == LOCAL}
    rows = []
    for name in dict.fromkeys(one.name for one in run.deployments):
        rounds = [one for one in run.deployments if one.name == name]

        def more(value: Callable[[Deployment], float], form: str, of: list[Deployment]) -> str:
            added = [value(one) - value(local[one.round]) for one in of]
            return "" if of[0].name == LOCAL else format(statistics.median(added), f"+{form}")

        alone = [ms for one in rounds for ms in one.alone_ms]
        rows.append(
            [
                name,
                _ms(sorted(alone), 50),
                more(lambda one: percentile(one.alone_ms, 50) or 0.0, ".1f", rounds),
                _ms(sorted(alone), 95),
                spread(one.masks_rps for one in rounds),
                ""
                if name == LOCAL
                else spread((one.masks_rps / local[one.round].masks_rps for one in rounds), ".2f"),
                spread(one.cpu_ms for one in rounds),
                more(lambda one: one.cpu_ms, ".1f", rounds),
                f"{statistics.median(one.idle_processors for one in rounds):.3f}",
                f"{statistics.median(one.pss_mib for one in rounds):.0f}",
            ]
        )
    head = [
        "",
        "alone, p50 ms",
        "added",
        "p95 ms",
        "masks/s",
        "of local",
        "processor ms a mask",
        "added",
        "idle processors",
        "MiB",
    ]
    return _table(head, rows)


def transports(run: Run) -> list[str]:
    """Ways to send pixels, each also as a part of the first."""
    rows = []
    first = {one.round: one for one in run.transports if one.name == run.transports[0].name}
    for name in dict.fromkeys(one.name for one in run.transports):
        rounds = [one for one in run.transports if one.name == name]
        alone = sorted(ms for one in rounds for ms in one.alone_ms)
        rows.append(
            [
                name,
                _ms(alone, 50),
                _ms(alone, 95),
                spread(one.images_rps for one in rounds),
                spread(one.cpu_ms for one in rounds),
                spread((one.cpu_ms / first[one.round].cpu_ms for one in rounds), ".2f"),
            ]
        )
    head = [
        "pixels",
        "alone, p50 ms",
        "p95 ms",
        "images/s",
        "processor ms an image",
        "of the first",
    ]
    return _table(head, rows)


def replicas(run: Run) -> list[str]:
    """Growth with model replicas."""
    one = {growth.round: growth for growth in run.replicas if growth.number == 1}
    rows = []
    for number, rounds in _by_number(run.replicas).items():
        linear = [
            100 * growth.masks_rps / (number * one[growth.round].masks_rps) for growth in rounds
        ]
        rows.append(
            [
                str(number),
                spread(growth.masks_rps for growth in rounds),
                spread(linear, ".0f") + " %",
                spread(growth.cpu_ms for growth in rounds),
            ]
        )
    head = ["replicas", "images/s", "of linear growth", "processor ms an image"]
    return _table(head, rows)


def servers(run: Run) -> list[str]:
    """What a mask costs with more servers before the same replicas."""
    rows = [
        [
            str(number),
            spread(growth.masks_rps for growth in rounds),
            spread(growth.cpu_ms for growth in rounds),
        ]
        for number, rounds in _by_number(run.servers).items()
    ]
    return _table(["servers", "masks/s", "processor ms a mask"], rows, texts=0)


def stages(run: Run) -> list[str]:
    """What one photo costs."""
    rows = []
    for one in run.stages:
        total_ms = one.http_ms + one.codec_ms + one.device_ms
        rows.append(
            [
                one.photo,
                f"{one.upload_bytes / 1024:.0f}",
                f"{one.answer_bytes / 1024:.0f}",
                f"{one.http_ms:.1f}",
                f"{one.codec_ms:.0f}",
                f"{one.device_ms:.0f}",
                f"{total_ms:.0f}",
                f"{1000 / total_ms:.1f}",
                f"{processor_s_per_million(one):,.0f}",
            ]
        )
    head = [
        "photo",
        "KiB in",
        "KiB out",
        "HTTP ms",
        "codec ms",
        "network ms",
        "sum ms",
        "a second on one processor",
        "processor-seconds a million",
    ]
    return _table(head, rows)


def plans(run: Run) -> list[str]:
    """Instances for each rate and size of photo."""
    full = fullness(INSTANCE)
    rows = []
    for one in run.stages:
        for rate in RATES:
            found = plan(rate, one, full)
            rows.append(
                [
                    one.photo,
                    f"{rate:,}",
                    f"{found.processors:,.1f}",
                    f"{found.instances:,}",
                    f"{found.bottleneck}, {found.share:.0%}",
                    f"{found.gigabits:.3g}",
                    f"{found.pixel_gigabits:.3g}",
                ]
            )
    head = [
        "photo",
        "a second",
        "busy processors",
        f"instances of {INSTANCE}",
        "bottleneck",
        "Gbit/s from and to clients",
        "Gbit/s to replicas",
    ]
    return _table(head, rows)


def full(_: Run) -> list[str]:
    """How full so many processors may be."""
    row = [f"{fullness(places):.0%}" for places in PLACES]
    return _table(["processors", *map(str, PLACES)], [["may be busy", *row]])


def check(loads: Iterable[Load]) -> list[str]:
    """What the model said, and what was measured, in milliseconds."""
    rows = []
    for load in loads:
        service_s = [ms / 1000 for ms in load.service_ms]
        target_s = float("inf") if load.target_s is None else load.target_s
        said = simulate(load.offered_rps, load.places, service_s, target_s=target_s)
        formula = "-"
        if load.factor < 1:
            mean_s = statistics.fmean(service_s)
            wait_s = mean_wait_s(load.offered_rps, load.places, service_s)
            formula = f"{1000 * (mean_s + wait_s):.0f}"
        offered = len(load.latencies_ms) + load.refused
        refused = load.refused / offered if offered else 0.0
        mean = f"{statistics.fmean(load.latencies_ms):.0f}" if load.latencies_ms else "-"
        rows.append(
            [
                str(load.places),
                f"{load.factor:g}",
                f"{load.offered_rps:.1f}",
                formula,
                f"{1000 * said.mean_s:.0f} / {mean}",
                f"{1000 * said.p50_s:.0f} / {_ms(load.latencies_ms, 50, '.0f')}",
                f"{1000 * said.p95_s:.0f} / {_ms(load.latencies_ms, 95, '.0f')}",
                f"{1000 * said.p99_s:.0f} / {_ms(load.latencies_ms, 99, '.0f')}",
                f"{said.refused:.0%} / {refused:.0%}",
            ]
        )
    head = [
        "places",
        "of capacity",
        "offered/s",
        "mean by the formula",
        "mean",
        "p50",
        "p95",
        "p99",
        "refused",
    ]
    return _table(head, rows, texts=0)


TABLES: dict[str, Callable[[Run], list[str]]] = {
    "conditions": conditions,
    "deployments": deployments,
    "transports": transports,
    "replicas": replicas,
    "servers": servers,
    "stages": stages,
    "plans": plans,
    "full": full,
    "replica_loads": lambda run: check(run.replica_loads),
    "service_loads": lambda run: check(run.service_loads),
}


def _table(head: list[str], rows: list[list[str]], texts: int = 1) -> list[str]:
    """None without rows; the first `texts` columns are no numbers."""
    return table(head, rows, numbers=len(head) - texts) if rows else []


def _by_number(grown: Iterable[Growth]) -> dict[int, list[Growth]]:
    found: dict[int, list[Growth]] = {}
    for growth in grown:
        found.setdefault(growth.number, []).append(growth)
    return found


def _ms(ascending: list[float], percent: float, form: str = ".1f") -> str:
    value = percentile(ascending, percent)
    return "-" if value is None else format(value, form)
