from __future__ import annotations

import re

import pytest
from benchmarks.scaling.measure import LOCAL, ONE_NODE
from benchmarks.scaling.report import PAGE, TABLES, write_report
from benchmarks.scaling.results import Deployment, Growth, Load, Run, Stages, Transport, load_run

MARKER = re.compile(r"<!-- table: (\w+) -->")


@pytest.fixture
def run():
    return Run(
        machine="a machine, 2 processors",
        commit="abc1234",
        began="2026-01-01 00:00",
        stages=[Stages("640 x 480", 3.0, 9.0, 52.0, 92_000, 57_000)],
        deployments=[
            Deployment(LOCAL, 0, [50.0, 60.0, 70.0], 15.0, 65.0, 0.01, 500.0),
            Deployment(ONE_NODE, 0, [54.0, 65.0, 70.0], 12.0, 80.0, 0.05, 1500.0),
            # A slow round, for both.
            Deployment(LOCAL, 1, [100.0, 120.0, 140.0], 7.5, 130.0, 0.01, 500.0),
            Deployment(ONE_NODE, 1, [106.0, 127.0, 140.0], 6.0, 146.0, 0.05, 1500.0),
        ],
        transports=[
            Transport("in the call", 0, [4.0, 5.0], 200.0, 6.0),
            Transport("through the object store", 0, [8.0, 9.0], 100.0, 9.0),
        ],
        replicas=[Growth(1, 0, 9.5, 4.0), Growth(8, 0, 72.0, 3.0)],
        servers=[Growth(1, 0, 60.0, 15.0), Growth(2, 0, 61.0, 15.5)],
        replica_loads=[Load(1, 0.5, 5.0, 10.0, [100.0, 150.0], 0, [100.0], None)],
        service_loads=[Load(1, 1.3, 26.0, 10.0, [900.0, 950.0], 2, [50.0], 1.0)],
    )


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "scaling.md"
    path.write_text(PAGE.read_text())
    return path


def rows(page, name):
    block = page.read_text().split(f"<!-- table: {name} -->")[1].split("<!-- end -->")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_every_table_once():
    assert sorted(MARKER.findall(PAGE.read_text())) == sorted(TABLES)


def test_a_run_reads_what_it_wrote(run, tmp_path):
    run.save(tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run


def test_what_ray_adds_compares_the_same_round(run, page):
    write_report(run, page)
    local, ray = rows(page, "deployments")
    assert (local[0], local[2], local[5]) == (LOCAL, "", "")
    assert (ray[0], ray[2], ray[7]) == (ONE_NODE, "+6.0", "+15.5")
    assert ray[5].startswith("0.80")


def test_ways_to_send_pixels_are_compared(run, page):
    write_report(run, page)
    assert [row[-1] for row in rows(page, "transports")] == ["1.00", "1.50"]


def test_growth_is_compared_with_that_of_one(run, page):
    write_report(run, page)
    assert [row[2] for row in rows(page, "replicas")] == ["100 %", "95 %"]


def test_the_model_stands_beside_what_was_measured(run, page):
    write_report(run, page)
    (below,), (above,) = rows(page, "replica_loads"), rows(page, "service_loads")
    # One place, constant times, half full: 1/2 of the service time, Pollaczek and Khinchine.
    assert below[3] == "150"
    assert below[4].endswith("/ 125")
    assert above[3] == "-", "no queue is stable above capacity"
    refused, measured = above[8].split(" / ")
    assert 20 <= int(refused.rstrip("%")) <= 26
    assert measured == "50%"


def test_a_run_of_some_parts_leaves_the_other_tables(run, page):
    write_report(run, page)
    whole = rows(page, "servers")
    write_report(Run("another", "def5678", "2026-01-02 00:00"), page)
    assert rows(page, "servers") == whole
    assert "def5678" in page.read_text()
