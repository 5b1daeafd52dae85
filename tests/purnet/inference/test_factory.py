"""Which engine runs what, for every combination of file, device and installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_network import SIZE, Exported

from purnet.errors import CheckpointError, DeviceError
from purnet.inference import factory
from purnet.inference import openvino_engine as openvino
from purnet.inference.openvino_engine import DEFAULT_EXPORT
from purnet.network.checkpoint import DEFAULT_CHECKPOINT

GIVEN = Path("weights.pth")


class Machine:
    """What is installed, which devices there are, and what was loaded by which engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed = {"torch", "openvino"}
        self.cuda = False
        self.shipped = True
        self.loaded: tuple[str, Path | None] | None = None
        monkeypatch.setattr(factory, "_installed", lambda package: package in self.installed)
        monkeypatch.setattr(factory, "_on_cuda", self._on_cuda)
        monkeypatch.setattr(factory, "is_export", self._is_export)
        monkeypatch.setattr(factory, "load_export", self._engine("openvino"))
        monkeypatch.setattr(factory, "load_torch", self._engine("torch"))
        monkeypatch.setattr(factory, "cached_export", lambda path: Path("cache") / path)

    def _on_cuda(self, device: str) -> bool:
        return device.startswith("cuda") or (device == "auto" and self.cuda)

    def _is_export(self, path: Path) -> bool:
        return path == Path("export") or (path == DEFAULT_EXPORT and self.shipped)

    def _engine(self, name: str) -> Any:
        def load(path: Path | None, *, device: str, threads: int | None) -> None:
            self.loaded = (name, path)

        return load

    def load(self, path: Path | None, device: str = "auto", *, convert: bool = True) -> Any:
        factory.load(path, device=device, convert=convert)
        return self.loaded


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_the_shipped_weights_run_by_openvino_where_there_is_no_gpu(machine: Machine) -> None:
    assert machine.load(None) == ("openvino", DEFAULT_EXPORT)
    assert machine.load(None, "cpu", convert=False) == ("openvino", DEFAULT_EXPORT)
    machine.installed = {"openvino"}
    assert machine.load(None) == ("openvino", DEFAULT_EXPORT)


def test_a_gpu_runs_them_by_torch(machine: Machine) -> None:
    assert machine.load(None, "cuda:0") == ("torch", None)
    machine.cuda = True
    assert machine.load(None) == ("torch", None)
    assert machine.load(None, "cpu") == ("openvino", DEFAULT_EXPORT)


def test_without_openvino_torch_runs_everything(machine: Machine) -> None:
    machine.installed = {"torch"}
    assert machine.load(None) == ("torch", None)
    assert machine.load(GIVEN) == ("torch", GIVEN)


def test_a_checkpoint_is_exported_to_be_served_and_only_then(machine: Machine) -> None:
    assert machine.load(GIVEN) == ("openvino", Path("cache") / GIVEN)
    assert machine.load(GIVEN, convert=False) == ("torch", GIVEN)
    assert machine.load(GIVEN, "cuda") == ("torch", GIVEN)


def test_weights_without_a_shipped_export_are_exported_too(machine: Machine) -> None:
    machine.shipped = False
    engine, path = machine.load(None)
    assert (engine, path.name) == ("openvino", "purnet-lite0-gc.safetensors")


@pytest.mark.parametrize("error", [CheckpointError("misses the gate"), OSError("read-only")])
def test_what_cannot_be_exported_runs_by_torch(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(_path: Path) -> Path:
        raise error

    monkeypatch.setattr(factory, "cached_export", fail)
    assert machine.load(GIVEN) == ("torch", GIVEN)
    assert str(error) in caplog.text


def test_a_damaged_export_in_the_cache_is_made_again(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    folder, made = tmp_path / "export", []
    load_export = factory.load_export

    def make(_checkpoint: Path) -> Path:
        if not folder.exists():
            folder.mkdir()
            made.append(folder)
        return folder

    def load(path: Path, **options: Any) -> Any:
        if len(made) == 1:
            raise CheckpointError(f"{path} is damaged")
        return load_export(path, **options)

    monkeypatch.setattr(factory, "cached_export", make)
    monkeypatch.setattr(factory, "load_export", load)
    assert machine.load(GIVEN) == ("openvino", folder)
    assert len(made) == 2
    assert "is damaged" in caplog.text


def test_an_export_is_taken_as_it_is(machine: Machine) -> None:
    assert machine.load(Path("export"), convert=False) == ("openvino", Path("export"))


def test_an_export_keeps_the_version_of_its_checkpoint(exported: Exported) -> None:
    predictor = factory.load(exported.folder)
    predictor.self_check()
    by_torch = factory.load(exported.checkpoint, device="cpu")
    assert predictor.sha256 == by_torch.sha256
    assert (predictor.variant, predictor.input_size) == ("purnet-lite0", SIZE)
    assert (predictor.engine.name, by_torch.engine.name) == ("openvino", "eager")


def test_an_export_does_not_run_on_a_gpu(exported: Exported) -> None:
    with pytest.raises(DeviceError, match="the checkpoint it was made from"):
        factory.load(exported.folder, device="cuda:0")


@pytest.mark.parametrize("threads", [3, None])
def test_engines_on_the_cpu_get_their_number_of_threads(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    seen = []
    monkeypatch.setattr(openvino, "load", lambda _folder, *, threads: seen.append(threads))
    factory.load(exported.folder, device="cpu", threads=threads)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    factory.load(exported.checkpoint, device="cpu", threads=threads)
    assert seen == ([3, 3] if threads else [None])


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_installed", lambda package: package == "openvino")


@pytest.mark.usefixtures("without_torch")
def test_without_torch_a_checkpoint_is_refused_with_the_command_that_converts_it(
    exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"purnet export {exported.checkpoint} -o DIR"):
        factory.load(exported.checkpoint, device="auto", convert=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        factory.load(tmp_path / "none", device="auto")


def test_a_path_that_cannot_be_looked_at_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        factory.load(tmp_path / ("x" * 300), device="cpu")


TORN = DEFAULT_CHECKPOINT.read_bytes()[:100_000]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
        (TORN, "is cut short or damaged"),
        (TORN[:2_000], "is cut short or damaged"),
        (b"PK\x03\x04 and no end", "is cut short"),
        (None, "is a folder without export"),
    ],
    ids=["empty", "HTML page", "LFS pointer", "torn", "torn header", "torn archive", "folder"],
)
@pytest.mark.usefixtures("without_torch")
def test_without_torch_what_is_no_checkpoint_is_named(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "weights.safetensors"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        factory.load(path, device="auto", convert=True)


def test_what_tells_files_apart_loads_no_torch() -> None:
    command = "import purnet.network.checkpoint_file, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.usefixtures("without_torch")
def test_without_torch_a_gpu_that_was_demanded_is_an_error() -> None:
    with pytest.raises(DeviceError, match="on the CPU only"):
        factory.load(None, device="cuda:0")


def test_without_any_engine_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factory, "_installed", lambda _: False)
    with pytest.raises(CheckpointError, match="pip install"):
        factory.load(None, device="auto")


def test_auto_asks_torch_only_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(factory.ctypes, "CDLL", no_driver)
    assert not factory._on_cuda("auto")
    assert not factory._on_cuda("cpu")
    assert factory._on_cuda("cuda:1")
