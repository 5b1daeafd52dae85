"""From a JSON file to a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.peers.plan import Plan
from benchmarks.peers.report import write_report
from benchmarks.peers.results import About, Gate, Run, Start, Step, load_run
from benchmarks.peers.summary import summary_table
from benchmarks.peers.tables import ratios, spread


def step(peer: str, round_: int, *, came_ms: list[float], **more) -> Step:
    """A step of 10 s."""
    fields = {
        "mix": "small",
        "clients": None,
        "factor": None,
        "offered_rps": None,
        "seconds": 10.0,
        "statuses": {"200": 3},
        "latencies_ms": [100.0, 200.0, 6000.0],
        "cpu_ms_per_mask": 60.0,
        "peak_rss_mib": 300.0,
        "pss_mib": 250.0,
        "backlog_s": 0.0,
        "sent_late_p99_ms": 1.0,
        "generator_processors": 0.1,
    }
    return Step(peer=peer, round=round_, came_ms=came_ms, **(fields | more))


def recorded() -> Run:
    """Two rounds in which we are twice and four times as fast, and nobody is good at 3."""
    plan = Plan(
        peers=["purnet", "mosec"],
        mode="core0",
        tuning="default",
        mixes=["small"],
        factors=[1.0, 3.0],
        rounds=2,
        seconds=10.0,
        ramp_s=3.0,
        good_s=5.0,
        timeout_s=10.0,
        patience_s=60.0,
    )
    run = Run(
        machine="a machine",
        commit="abc1234",
        baseline=None,
        began="2026-01-02 03:04",
        plan=plan,
        photos={"small": (64, 74.0)},
        capacity_rps={"small": 30.0},
    )
    mostly_late = [*[100.0] * 20, *[6000.0] * 80]
    for peer, rates in {"purnet": (20, 40), "mosec": (10, 10)}.items():
        gate = Gate(masks=20, identical=20, worst_mean=0.0, worst_pixel=0)
        run.peers[peer] = About(f"settings of {peer}", {"numpy": "2.3.4"}, False, gate)
        for number, rate in enumerate(rates):
            run.starts.append(Start(peer, number, 2.0, 0.0))
            run.steps += [
                step(peer, number, came_ms=[50.0], clients=1, latencies_ms=[50.0]),
                step(peer, number, came_ms=[100.0] * 10 * rate, clients=16),
                step(peer, number, came_ms=mostly_late, factor=1.0, offered_rps=30.0),
                step(
                    peer,
                    number,
                    came_ms=[7000.0],
                    factor=3.0,
                    offered_rps=90.0,
                    latencies_ms=[7000.0],
                    statuses={"200": 1, "504": 1, "429": 8},
                    backlog_s=None,
                ),
            ]
    return run


@pytest.fixture
def run() -> Run:
    return recorded()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    recorded().save(folder / "run.json")
    page = folder / "docs" / "benchmark.md"
    write_report([load_run(folder / "run.json")], page)
    return page


def row(text: str, *cells: str) -> list[str]:
    """Cells of the one row that begins with these."""
    (found,) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(cells)} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_file_read_again_is_the_same(run: Run, tmp_path: Path):
    run.save(tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run


def test_ratios_compare_the_same_round(run: Run):
    ours, theirs = (
        [each for each in run.steps if each.peer == peer and each.clients == 16]
        for peer in ("purnet", "mosec")
    )
    assert ratios(ours, theirs, lambda each: each.masks_rps) == "3.00 (2.00 to 4.00)"
    assert ratios(ours, theirs[1:], lambda each: each.masks_rps) == "4.00"
    assert ratios(ours, [], lambda each: each.masks_rps) == "-"


def test_spread_is_the_median_with_the_extremes():
    assert spread([3.0, 1.0, 8.0]) == "3.0 (1.0 to 8.0)"
    assert spread([]) == "-"


def test_the_page_has_both_loops(page: Path):
    text = page.read_text()
    closed = row(text, "mosec", "50.0 (50.0 to 50.0)")
    assert closed[3:5] == ["10.0 (10.0 to 10.0)", "3.00 (2.00 to 4.00)"]
    # Of 100 masks that came in 10 s, 20 did within 5 s of when they were due.
    opened = row(text, "1", "mosec")
    assert opened[2:8] == ["30.0", "10.0 (10.0 to 10.0)", "2.0 (2.0 to 2.0)", "200", "6000", "6000"]
    overloaded = row(text, "3", "mosec")
    assert "429: 16, 504: 2" in overloaded
    assert "not done" in overloaded


def test_the_page_says_what_overload_costs(page: Path):
    text = page.read_text()
    # None good at 3 times the capacity; half of what was accepted came too late for its client.
    assert row(text, "purnet", "0.0")[1:] == ["0.0", "30.0", "0%", "7000", "50.0%"]


def test_the_page_begins_with_ours_beside_the_best_of_the_others(page: Path):
    text = page.read_text()
    what = "Server on one processor (2026-01-02 03:04, abc1234). Small photos"
    assert row(text, what, "p50 of 1 client, ms")[2:] == [
        "50.0", "mosec: 50.0", "1.00 (1.00 to 1.00)", "-",
    ]  # fmt: skip
    for name in ("masks/s of 16 clients", "masks/s of 16 clients, peers that batch"):
        assert row(text, what, name)[2:] == ["30.0", "mosec: 10.0", "3.00 (2.00 to 4.00)", "-"]
    assert row(text, what, "good/s (≤ 5 s) at 3 times our capacity")[2:4] == ["0.0", "mosec: 0.0"]


def test_the_best_latency_is_the_least_and_another_network_is_not_compared(run: Run):
    for peer, p50_ms in {"litserve": 40.0, "rembg": 1.0}.items():
        run.peers[peer] = run.peers["mosec"]
        run.steps.append(step(peer, 0, came_ms=[], clients=1, latencies_ms=[p50_ms]))
    rows = summary_table([("Here", run)])
    assert "litserve: 40.0" in rows[2]
    assert "rembg" not in "".join(rows)


def test_a_run_of_the_closed_loop_alone_has_a_page(run: Run, tmp_path: Path):
    run.plan.factors = []
    run.steps = [each for each in run.steps if each.factor is None]
    write_report([run], tmp_path / "benchmark.md")
    text = (tmp_path / "benchmark.md").read_text()
    assert "30.0 (20.0 to 40.0)" in text
    assert "good/s" not in text


def test_the_page_names_settings_versions_and_gate(page: Path):
    about = row(page.read_text(), "mosec", "settings of mosec")
    assert about[2:] == ["numpy 2.3.4", "20 of 20 identical, mean 0.000 at worst"]


def test_the_page_shows_a_plot_that_is_there(page: Path):
    (plot,) = re.findall(r"\]\((.*\.svg)\)", page.read_text())
    assert "<svg" in (page.parent / plot).read_text()


def test_a_run_that_was_stopped_has_a_page(run: Run, tmp_path: Path):
    run.steps = run.steps[:1]
    write_report([run], tmp_path / "benchmark.md")
    assert "| purnet | 50.0 |" in (tmp_path / "benchmark.md").read_text()
