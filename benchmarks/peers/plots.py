"""Plots of the open loop: what each peer gives as more is asked of it."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from benchmarks.peers.results import Run, percentile
from matplotlib.figure import Figure

SIZE_INCHES = (10.0, 4.2)
OURS_COLOUR = "#111111"


def overload_plot(run: Run, mix: str, path: Path) -> None:
    """Write an SVG: good masks a second and the latency of masks, over the load offered."""
    steps = [step for step in run.steps if step.mix == mix and step.offered_rps is not None]
    with mpl.rc_context({"svg.hashsalt": "purnet", "font.size": 9}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        good, latency = figure.subplots(1, 2)
        for number, peer in enumerate(run.peers):
            style = {
                "color": OURS_COLOUR if number == 0 else f"C{(number - 1) % 10}",
                "linewidth": 2.5 if number == 0 else 1.3,
                "marker": "o",
                "markersize": 3.5,
                "linestyle": "--" if peer.endswith("-single") else "-",
            }
            offered, rates, waits = [], [], []
            for factor in run.plan.factors:
                own = [step for step in steps if (step.peer, step.factor) == (peer, factor)]
                if not own:
                    continue
                every = sorted(ms for step in own for ms in step.latencies_ms)
                offered.append(statistics.median(step.offered_rps or 0.0 for step in own))
                rates.append(statistics.median(step.good_rps(run.plan.good_s) for step in own))
                p99 = percentile(every, 99)
                waits.append(float("nan") if p99 is None else p99 / 1000)
            if offered:
                good.plot(offered, rates, label=peer, **style)
                latency.plot(offered, waits, **style)
        good.set(
            xlabel="offered a second",
            ylabel=f"masks a second within {run.plan.good_s:g} s",
            ylim=(0, None),
        )
        latency.set(xlabel="offered a second", ylabel="p99 of masks, seconds", yscale="log")
        latency.axhline(run.plan.good_s, color="#999999", linewidth=0.8, linestyle=":")
        for axes in (good, latency):
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
