from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import Bench
from fake_predictor import Behaviour


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Behaviour().save(tmp_path / "fake.json")


@pytest.fixture
def make_bench(checkpoint: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**settings: object) -> Bench:
        bench = Bench(checkpoint, **settings)
        benches.append(bench)
        bench.start()
        return bench

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench) -> Bench:
    """One worker, up and idle."""
    bench = make_bench()
    bench.bring_up()
    return bench
