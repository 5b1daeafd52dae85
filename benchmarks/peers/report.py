"""The page: what was measured, how, and how each peer was set up."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.plots import overload_plot
from benchmarks.peers.results import About, Run
from benchmarks.peers.summary import summary_table
from benchmarks.peers.tables import (
    MIX_NAMES,
    View,
    closed_table,
    open_table,
    overload_table,
    table,
)

INTRODUCTION = """# Benchmark

Made by `python -m benchmarks.peers report`; do not edit. The service (`purnet`) beside other ways
to serve the same network, the same engine and the same codec, `baseline`, an older commit of ours,
and rembg's own server with a network of its own. Every mask was equal to ours, within 1/255 on
average, before anything was timed (rembg: only sizes).

- *1 client* and *16 clients* never pause. Other loads are open-loop Poisson arrivals, the same for
  every peer, at factors of our capacity; latency counts from when a request was due.
- A mask is *good* if it came in time. Rates count what came in a step, percentiles what was due in
  it. Clients give up after a while; work done for nobody counts as processor time, which is that of
  all processes of a server.
- Rounds go through the peers in turn. Figures are medians of rounds, with the least and the most
  in brackets. A ratio compares the same round: it is the median of the rounds' ratios, which may
  differ from the ratio of two medians. Percentiles are of the requests of all rounds.
- Everything ran on one machine over 127.0.0.1, and nothing else on it. The machine itself is faster
  in one hour than in another, by up to 40 %: compare ratios, never figures of two runs.
"""


def write_report(runs: list[Run], page: Path) -> None:
    """Write the page, and its plots into a folder of its name beside it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    titles = [(_title(run), run) for run in runs]
    parts = [INTRODUCTION, "\n".join(["## In short", "", *summary_table(titles)])]
    for number, (title, run) in enumerate(titles):
        parts.append(f"## {title}\n\n{_conditions(run)}\n")
        for mix in run.plan.mixes:
            view = View(run, mix)
            if not view.peers():
                continue
            plot = None
            if any(step.factor is not None for step in run.steps if step.mix == mix):
                plot = Path(page.stem) / f"{number + 1}-{mix}.svg"
                overload_plot(run, mix, page.parent / plot)
            parts.append(section(view, plot))
    parts.append(setups(runs))
    page.write_text("\n".join(parts))


def section(view: View, plot: Path | None) -> str:
    """Tables of one mix, and its plot where the open loop was run."""
    files, kib = view.run.photos[view.mix]
    capacity = view.run.capacity_rps.get(view.mix, 0.0)
    lines = [
        f"### {MIX_NAMES[view.mix]}",
        "",
        f"{files} photos of {kib:.0f} KiB on average. Our capacity: {capacity:.1f} masks/s.",
        "",
        *closed_table(view),
    ]
    if plot is not None:
        lines += [
            *open_table(view),
            f"![Good masks and latency over load]({plot.as_posix()})",
            "",
            *overload_table(view),
        ]
    return "\n".join(lines)


def setups(runs: list[Run]) -> str:
    """How each peer was set up, and how its masks compare."""
    found: dict[tuple[str, str], About] = {}
    for run in runs:
        for name, about in run.peers.items():
            found.setdefault((name, about.settings), about)
    rows = [
        [name, about.settings, _versions(about), _gate(about)] for (name, _), about in found.items()
    ]
    head = ["peer", "settings", "versions", "masks against ours"]
    return "\n".join(["## Set-ups", "", *table(head, rows, numbers=0)])


def _title(run: Run) -> str:
    where = "server on one processor" if run.plan.mode == "core0" else "server on all processors"
    what = f", answers wanted within {run.plan.good_s:g} s" if run.plan.tuning == "deadline" else ""
    return f"{where.capitalize()}{what} ({run.began}, {run.commit})"


def _conditions(run: Run) -> str:
    plan = run.plan
    beside = (
        "The load generator had a processor of its own"
        if plan.mode == "core0"
        else "The load generator shared them"
    )
    baseline = f", `baseline` {run.baseline}" if run.baseline else ""
    return (
        f"{run.machine}; {run.began}; commit {run.commit}{baseline}. {beside}. {plan.rounds} "
        f"rounds; {plan.seconds:g} s a step after {plan.ramp_s:g} s that are not counted, longer "
        f"with large photos; clients give up after {plan.timeout_s:g} s."
    )


def _versions(about: About) -> str:
    return ", ".join(f"{name} {version}" for name, version in about.versions.items())


def _gate(about: About) -> str:
    gate = about.gate
    if gate is None or gate.worst_mean is None:
        return "sizes only"
    return f"{gate.identical} of {gate.masks} identical, mean {gate.worst_mean:.3f} at worst"
