from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from purnet.errors import TrainingError, WriteError
from purnet.io import write_atomically
from purnet.training.resume import RunLog, RunState, plot_curves, restore_rng, rng_state

WRITER = """
import sys, torch
from itertools import count
from pathlib import Path
from purnet.training.resume import RunState

for number in count():
    tensors = {"w": torch.full((400_000,), float(number))}
    state = RunState("r", "v", "d", [0], "", 0, number, 0.5, tensors, tensors, {}, [])
    state.save(Path(sys.argv[1]))
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_loadable_file(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            # Somewhere in the next write; where exactly differs from run to run.
            if int(line) == 12:
                writer.kill()
                break
        writer.stdout.read()
    state = RunState.load(path)
    assert state.iteration >= 12
    assert torch.equal(state.network["w"], torch.full((400_000,), float(state.iteration)))


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a file of torch's", b"PK\x03\x04 truncated"])
def test_a_foreign_resume_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "resume.pt"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"resume\.pt"):
        RunState.load(path)


def state() -> RunState:
    tensors = {"w": torch.zeros(100_000)}
    return RunState("r", "v", "d", [0], "", 0, 1, 0.5, tensors, tensors, {}, [])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: state().save(path),
        lambda path: RunLog(path).append({}),
        lambda path: RunLog(path).rewind(0, 0),
        lambda path: plot_curves([], path),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "gone" / "file.png"
    with pytest.raises(WriteError, match=r"gone/file\.png cannot be written: No such file"):
        write(path)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 100 kB: torch's writer fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"resume\.pt cannot be written; is the disk full"):
            state().save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_keeps_the_generators_of_its_own_device_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generators = {torch.device("cuda", index): torch.tensor([index]) for index in range(4)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", generators.__getitem__)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: generators.update({device: state})
    )
    cpu, third = torch.device("cpu"), torch.device("cuda", 2)
    assert len(rng_state(cpu)) == 1
    kept = rng_state(third)
    assert [state.tolist() for state in kept[1:]] == [[2]]
    # A machine with one GPU, and one with none.
    del generators[third]
    restore_rng(kept, torch.device("cuda", 0))
    assert generators[torch.device("cuda", 0)].tolist() == [2]
    assert third not in generators
    torch.rand(1)
    restore_rng(kept, cpu)
    assert torch.equal(torch.get_rng_state(), kept[0])


def test_curves_that_cannot_be_drawn_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_figure: Figure, part: Path, **_options: object) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match=r"curves\.png cannot be written: disk full"):
        plot_curves([], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_is_rewound_to_where_a_run_goes_on(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl")
    for stage, iteration in [(1, 20), (1, 40), (2, 20), (2, 40)]:
        log.append({"stage": stage, "iteration": iteration})
    with log.path.open("a") as file:
        file.write('{"stage": 2, "iter')
    log.rewind(2, 20)
    assert [(e["stage"], e["iteration"]) for e in log.entries()] == [(1, 20), (1, 40), (2, 20)]


def test_without_matplotlib_no_curves_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot_curves([], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
