"""What the page says first: ours beside the best of the others, measure by measure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.peers.environments import BASELINE
from benchmarks.peers.peers import OURS, PEERS
from benchmarks.peers.plan import CLIENTS
from benchmarks.peers.results import Run, Step
from benchmarks.peers.tables import MIX_NAMES, View, p50_ms, ratios, table


@dataclass(frozen=True)
class Measure:
    """One figure of a step."""

    name: str
    load: str
    value: Callable[[Step], float | None]
    best: Callable[..., str] = max


def summary_table(runs: list[tuple[str, Run]]) -> list[str]:
    """Each run with its title: rows for its mixes and measures, where there is one to compare."""
    rows = [
        [f"{title}. {MIX_NAMES[mix]}", *row]
        for title, run in runs
        for mix in run.plan.mixes
        for row in _rows(View(run, mix))
    ]
    head = ["what", "measure", "ours", "best of the others", "ours ÷ it", f"ours ÷ `{BASELINE}`"]
    return table(head, rows, numbers=2)


def _rows(view: View) -> Iterator[list[str]]:
    others = [
        peer for peer in view.peers() if peer not in (OURS, BASELINE) and PEERS[peer].same_network
    ]
    batching = [peer for peer in others if PEERS[peer].batches]
    for measure in _measures(view.run):
        yield from _row(view, measure, others, measure.name)
        if measure.load == f"{CLIENTS} clients":
            yield from _row(view, measure, batching, f"{measure.name}, peers that batch")


def _measures(run: Run) -> Iterator[Measure]:
    within_s = run.plan.good_s
    yield Measure("p50 of 1 client, ms", "1 client", p50_ms, min)
    yield Measure(
        f"masks/s of {CLIENTS} clients", f"{CLIENTS} clients", lambda step: step.masks_rps
    )
    if run.plan.factors:
        load = f"{max(run.plan.factors):g}"
        name = f"good/s (≤ {within_s:g} s) at {load} times our capacity"
        yield Measure(name, load, lambda step: step.good_rps(within_s))


def _row(view: View, measure: Measure, others: list[str], name: str) -> Iterator[list[str]]:
    medians = {}
    for peer in (OURS, *others):
        values = [measure.value(step) for step in view.steps(peer, measure.load)]
        if known := [value for value in values if value is not None]:
            medians[peer] = statistics.median(known)
    ours = medians.pop(OURS, None)
    if ours is None or not medians:
        return
    best = measure.best(medians, key=medians.__getitem__)
    yield [
        name,
        f"{ours:.1f}",
        f"{best}: {medians[best]:.1f}",
        *(
            ratios(view.steps(OURS, measure.load), view.steps(peer, measure.load), measure.value)
            for peer in (best, BASELINE)
        ),
    ]
