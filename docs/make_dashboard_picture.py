"""Draw the Grafana dashboard without Grafana: `python docs/make_dashboard_picture.py`.

Sends the queries of docker/grafana/dashboards/purnet.json to a running Prometheus and draws their
answers where the dashboard has its panels. docs/operating.md says how its picture was made.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "purnet.json"
TARGET = Path(__file__).parent / "dashboard.webp"
RATE_INTERVAL = "30s"
COLUMNS = 24
"""Width of a Grafana dashboard, in its own units."""
UNIT_INCHES = 0.58, 0.36
"""Its width and height on the picture."""
GAP = 0.9
"""Between panels, in dashboard units."""

Series = tuple[str, list[float], list[float]]
"""Legend, seconds since the epoch, values."""


def panels(rows: list[str]) -> list[dict[str, Any]]:
    """The panels below the named rows; those of all rows without names."""
    found, wanted = [], not rows
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            wanted = not rows or panel["title"] in rows
        elif wanted:
            found.append(panel)
    return found


def series_of(
    client: httpx.Client, panel: dict[str, Any], start: float, end: float
) -> list[Series]:
    """What Prometheus answers to the queries of a panel, for a span of time."""
    found: list[Series] = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")
        step = max(1.0, (end - start) / 240)
        answer = client.post(
            "/api/v1/query_range",
            data={"query": query, "start": start, "end": end, "step": step},
        )
        answer.raise_for_status()
        for one in answer.json()["data"]["result"]:
            points = [(float(t), float(v)) for t, v in one["values"]]
            legend = re.sub(
                r"\{\{(\w+)\}\}",
                lambda name, labels=one["metric"]: str(labels.get(name[1], "")),
                target.get("legendFormat", ""),
            )
            found.append((legend, [t for t, _ in points], [v for _, v in points]))
    return found


def quantity(value: float, unit: str | None) -> str:
    """A number as Grafana writes it."""
    if math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return f"{value / 2**20:.4g} MiB"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.3g}{' /s' if unit in ('reqps', 'ops') else ''}"


def draw_number(
    axes: Axes, panel: dict[str, Any], series: list[Series], _: tuple[float, float]
) -> None:
    """A panel of one number, or of the labels that are its point."""
    axes.set_axis_off()
    unit = panel["fieldConfig"]["defaults"].get("unit")
    legend, _, y = max(series, key=lambda one: one[1][-1], default=("", [], [math.nan]))
    text = legend or quantity(y[-1], unit)
    axes.text(
        0, 1, panel["title"], va="top", fontsize=10, color="#57606a", transform=axes.transAxes
    )
    size = 20 if len(text) <= 10 else 11
    if size == 11:
        text = "\n".join(word[:12] for word in text.split())
    axes.text(0, 0.72, text, va="top", fontsize=size, weight="bold", transform=axes.transAxes)


def draw_curves(
    axes: Axes, panel: dict[str, Any], series: list[Series], span: tuple[float, float]
) -> None:
    """A panel of curves over time."""
    unit = panel["fieldConfig"]["defaults"].get("unit")
    axes.set_title(panel["title"], loc="left", fontsize=10, color="#57606a")
    # Of many labels that never occurred, the legend would be longer than the panel.
    shown = [one for one in series if any(one[2])] or series[:1]
    for legend, x, y in shown:
        axes.plot([datetime.fromtimestamp(t, UTC) for t in x], y, label=legend, linewidth=1.4)
    axes.set_xlim(*(datetime.fromtimestamp(t, UTC) for t in span))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: quantity(value, unit))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=7))
    axes.tick_params(labelsize=8, color="#d0d7de")
    axes.grid(color="#eaeef2")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#d0d7de")
    if any(legend for legend, _, _ in shown):
        axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)


def main() -> None:
    """Draw some minutes of the running Prometheus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the picture")
    parser.add_argument("--ago", type=float, default=0.0, help="minutes since its end")
    parser.add_argument("--rows", nargs="*", default=[], help="titles of rows; all without")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    end = time.time() - options.ago * 60
    start = end - options.minutes * 60
    chosen = panels(options.rows)
    tops = sorted({panel["gridPos"]["y"] for panel in chosen})
    heights = {y: max(p["gridPos"]["h"] for p in chosen if p["gridPos"]["y"] == y) for y in tops}
    offsets = {y: sum(heights[above] for above in tops if above < y) for y in tops}
    total = sum(heights.values())
    figure = Figure(figsize=(COLUMNS * UNIT_INCHES[0], total * UNIT_INCHES[1]), facecolor="white")
    with httpx.Client(base_url=options.prometheus, trust_env=False, timeout=30) as client:
        for panel in chosen:
            place = panel["gridPos"]
            bottom = total - offsets[place["y"]] - place["h"]
            box = (
                (place["x"] + 1.4 * GAP) / COLUMNS,
                (bottom + GAP) / total,
                (place["w"] - 1.8 * GAP) / COLUMNS,
                (place["h"] - 2 * GAP) / total,
            )
            axes = figure.add_axes(box)
            draw = draw_number if panel["type"] == "stat" else draw_curves
            draw(axes, panel, series_of(client, panel, start, end), (start, end))
    figure.savefig(options.out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
