"""Tables of one run and mix: both loops, ratios to ours with their spread, and overload."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.peers.peers import OURS
from benchmarks.peers.results import Run, Step, percentile

MIX_NAMES = {
    "small": "Small photos",
    "12mp": "Photos of 12 megapixels",
    "mixed": "Mixed: one photo in eight of 12 megapixels",
}


@dataclass(frozen=True)
class View:
    """The steps of one run in one mix."""

    run: Run
    mix: str

    def steps(self, peer: str, load: str | None = None) -> list[Step]:
        """Of one peer, in order of rounds."""
        return [
            step
            for step in self.run.steps
            if (step.mix, step.peer) == (self.mix, peer) and load in (None, step.load)
        ]

    def peers(self) -> list[str]:
        """Those with steps."""
        return [name for name in self.run.peers if self.steps(name)]


def spread(values: Iterable[float], form: str = ".1f") -> str:
    """Median of the rounds, with the least and the most of them."""
    known = sorted(values)
    if not known:
        return "-"
    median = format(statistics.median(known), form)
    if len(known) == 1:
        return median
    return f"{median} ({format(known[0], form)} to {format(known[-1], form)})"


def ratios(ours: list[Step], theirs: list[Step], value: Callable[[Step], float | None]) -> str:
    """Ours over theirs in each round that has both, as a spread."""
    by_round = {step.round: value(step) for step in theirs}
    found = []
    for step in ours:
        mine, other = value(step), by_round.get(step.round)
        if mine is not None and other:
            found.append(mine / other)
    return spread(found, ".2f")


def closed_table(view: View) -> list[str]:
    """Clients that never pause, starts and memory."""
    full = next((s.load for s in view.run.steps if s.clients is not None and s.clients > 1), "")
    rows = []
    for peer in view.peers():
        idle, busy = view.steps(peer, "1 client"), view.steps(peer, full)
        starts = [start for start in view.run.starts if start.peer == peer]
        every = view.steps(peer)
        rows.append(
            [
                peer,
                spread(p50_ms(step) or 0.0 for step in idle if step.latencies_ms),
                ratios(view.steps(OURS, "1 client"), idle, p50_ms),
                spread(step.masks_rps for step in busy),
                ratios(view.steps(OURS, full), busy, lambda step: step.masks_rps),
                spread((s.cpu_ms_per_mask for s in idle if s.cpu_ms_per_mask is not None), ".0f"),
                spread((s.cpu_ms_per_mask for s in busy if s.cpu_ms_per_mask is not None), ".0f"),
                spread(start.seconds for start in starts),
                f"{max(step.peak_rss_mib for step in every):.0f}",
                f"{max(step.pss_mib for step in every):.0f}",
            ]
        )
    head = [
        "peer",
        "p50 of 1 client, ms",
        "ours ÷ theirs",
        "masks/s of 16 clients",
        "ours ÷ theirs",
        "processor ms a mask, 1 client",
        "16 clients",
        "start, s",
        "peak MiB",
        "MiB, shared once",
    ]
    return table(head, rows, numbers=len(head) - 1)


def open_table(view: View) -> list[str]:
    """Every peer at each factor of our capacity."""
    rows = []
    for factor in view.run.plan.factors:
        load = f"{factor:g}"
        for peer in view.peers():
            steps = view.steps(peer, load)
            if not steps:
                continue
            waits = _waits(steps)
            offered = statistics.median(step.offered_rps or 0.0 for step in steps)
            rows.append(
                [
                    load,
                    peer,
                    f"{offered:.1f}",
                    spread(step.masks_rps for step in steps),
                    spread(step.good_rps(view.run.plan.good_s) for step in steps),
                    *(_ms(percentile(waits, percent)) for percent in (50, 95, 99)),
                    _others(steps),
                    spread(
                        (s.cpu_ms_per_mask for s in steps if s.cpu_ms_per_mask is not None), ".0f"
                    ),
                    _backlog(steps),
                    f"{max(step.sent_late_p99_ms for step in steps):.0f}",
                ]
            )
    head = [
        "load",
        "peer",
        "offered/s",
        "masks/s",
        f"good/s (≤ {view.run.plan.good_s:g} s)",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "no mask",
        "processor ms a mask",
        "backlog, s",
        "sent late, p99 ms",
    ]
    return table(head, rows, numbers=len(head) - 2)


def overload_table(view: View) -> list[str]:
    """The highest load against the best of any load: does overload cost good answers?"""
    good_s = view.run.plan.good_s
    factor = f"{max(view.run.plan.factors):g}"
    rows = []
    for peer in view.peers():
        top = view.steps(peer, factor)
        if not top:
            continue
        good = statistics.median(step.good_rps(good_s) for step in top)
        loads = {step.load for step in view.steps(peer)}
        best = max(
            statistics.median(step.good_rps(good_s) for step in view.steps(peer, load))
            for load in loads
        )
        accepted = Counter[str]()
        for step in top:
            accepted.update(step.statuses)
        late = accepted["504"]
        answered = accepted["200"] + late
        rows.append(
            [
                peer,
                f"{good:.1f}",
                f"{best:.1f}",
                f"{good / best:.0%}" if best else "-",
                _ms(percentile(_waits(top), 99)),
                f"{late / answered:.1%}" if answered else "-",
            ]
        )
    head = [
        "peer",
        f"good/s at {factor}",
        "best of any load",
        "share",
        "p99 ms of masks",
        "504 of accepted",
    ]
    return table(head, rows, numbers=len(head) - 1)


def table(head: list[str], rows: list[list[str]], *, numbers: int) -> list[str]:
    """A Markdown table whose last columns, `numbers` of them, are right-aligned."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    lines = [head, rule, *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def p50_ms(step: Step) -> float | None:
    """Median latency of the masks of a step; None of none."""
    return percentile(step.latencies_ms, 50)


def _waits(steps: list[Step]) -> list[float]:
    return sorted(ms for step in steps for ms in step.latencies_ms)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _others(steps: list[Step]) -> str:
    count = Counter[str]()
    for step in steps:
        count.update({status: n for status, n in step.statuses.items() if status != "200"})
    return ", ".join(f"{status}: {n}" for status, n in sorted(count.items())) or "-"


def _backlog(steps: list[Step]) -> str:
    known = [step.backlog_s for step in steps if step.backlog_s is not None]
    unfinished = len(known) < len(steps)
    return "not done" if unfinished else f"{max(known, default=0.0):.1f}"
