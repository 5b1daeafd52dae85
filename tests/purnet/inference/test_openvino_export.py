from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported_network import SIZE, Exported
from typer.testing import CliRunner

from purnet.cli import app as cli
from purnet.errors import CheckpointError
from purnet.inference import export_source, factory
from purnet.inference import openvino_export as exporting
from purnet.inference.engine import EngineOutput
from purnet.inference.openvino_engine import (
    DEFAULT_EXPORT,
    FILES,
    INFO,
    is_export,
    read_info,
    read_reference,
)
from purnet.inference.openvino_export import export
from purnet.inference.parity import MaskDifference, self_check_pixels
from purnet.inference.torch_engine import reference_output
from purnet.io import sha256_of
from purnet.network import checkpoint

Damage = Callable[[Path], object]


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the export to be damaged."""
    return shutil.copytree(exported.folder, tmp_path / "export")


def test_an_export_says_what_it_was_made_from(exported: Exported) -> None:
    info = read_info(exported.folder)
    assert (info.variant, info.input_size) == ("purnet-lite0", SIZE)
    assert info.sha256 == sha256_of(exported.checkpoint)
    assert set(info.files) == set(FILES)
    assert set(info.versions) == {"openvino", "python", "torch"}
    assert exported.difference.passes


def test_its_reference_is_the_bundled_photo_by_eager_float32(exported: Exported) -> None:
    expected = reference_output(exported.network, self_check_pixels(SIZE)).masks[0]
    assert np.array_equal(read_reference(exported.folder), expected)


def test_others_may_read_it(exported: Exported) -> None:
    assert exported.folder.stat().st_mode & 0o777 == 0o755


def test_the_shipped_export_is_that_of_the_shipped_weights() -> None:
    info = read_info(DEFAULT_EXPORT)
    assert info.sha256 == sha256_of(checkpoint.DEFAULT_CHECKPOINT), (
        "the weights changed: remove the folder and run `purnet export` on them again"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / INFO).unlink(), INFO),
        (lambda folder: (folder / "model.bin").unlink(), r"model\.bin is missing"),
        (lambda folder: (folder / "model.xml").write_text("other"), r"model\.xml changed"),
        (lambda folder: (folder / INFO).write_text("{"), "is no export"),
        (lambda folder: (folder / INFO).write_text("[]"), "does not say"),
        (lambda folder: (folder / INFO).write_text('{"format": "other"}'), "does not say"),
        (lambda folder: edit(folder, variant=None), "variant: Field required"),
        (lambda folder: edit(folder, colour="red"), "colour: Unexpected"),
        (lambda folder: edit(folder, input_size="320"), "input_size: Input should be a valid int"),
        (lambda folder: edit(folder, input_size=0), "input_size: Input should be greater than 0"),
        (lambda folder: edit(folder, input_size=SIZE + 32), "but the network's masks are"),
        (lambda folder: edit(folder, files=[]), "files: Input should be a valid dict"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(folder: Path, damage: Damage, said: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        read_info(folder)


def edit(folder: Path, **values: object) -> None:
    document = json.loads((folder / INFO).read_text())
    document = {key: values.get(key, value) for key, value in (document | values).items()}
    kept = {key: value for key, value in document.items() if value is not None}
    (folder / INFO).write_text(json.dumps(kept))


def test_a_folder_that_exists_is_left_alone(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists"):
        export(exported.checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be_made_is_said(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be made: .*file: File exists"):
        export(exported.checkpoint, tmp_path / "file" / "out")


def test_a_mask_that_is_not_finite_is_no_reference(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = np.zeros((1, SIZE, SIZE), np.uint8)
    monkeypatch.setattr(
        export_source,
        "reference_output",
        lambda *_: EngineOutput(masks=masks, finite=np.array([False])),
    )
    with pytest.raises(CheckpointError, match="not finite"):
        export(exported.checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", ["conversion", "gate"])
def test_a_failed_export_leaves_nothing_behind(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def copy(_source: object, path: Path) -> dict[str, str]:
        if failure == "conversion":
            raise RuntimeError("no rule for this operation")
        for name in ("model.xml", "model.bin"):
            shutil.copy(exported.folder / name, path.with_name(name))
        return {}

    monkeypatch.setattr(exporting, "_convert", copy)
    monkeypatch.setattr(
        export_source, "mask_difference", lambda *_: MaskDifference(mean=2.0, tail=9.0)
    )
    said = "no rule" if failure == "conversion" else "differs"
    with pytest.raises(CheckpointError, match=said):
        export(exported.checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Exporter:
    """Stands for `export`, which takes a while: copies one that was made before."""

    def __init__(self, ready: Path) -> None:
        self.ready = ready
        self.calls = 0

    def __call__(self, _checkpoint: Path, folder: Path) -> None:
        self.calls += 1
        shutil.copytree(self.ready, folder)


@pytest.fixture
def exporter(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exporter = Exporter(exported.folder)
    monkeypatch.setattr(exporting, "export", exporter)
    return exporter


def test_a_checkpoint_is_exported_once(exported: Exported, exporter: Exporter) -> None:
    first = factory.cached_export(exported.checkpoint)
    assert is_export(first)
    assert factory.cached_export(exported.checkpoint) == first
    assert exporter.calls == 1


def test_finding_an_export_loads_no_torch(exported: Exported, exporter: Exporter) -> None:
    factory.cached_export(exported.checkpoint)
    script = """
import sys
from pathlib import Path
from purnet.inference.factory import load_to_serve
predictor = load_to_serve(Path(sys.argv[1]), device="cpu")
assert predictor.engine.name == "openvino"
assert "torch" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(exported.checkpoint)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert exporter.calls == 1


def test_other_weights_and_other_versions_have_exports_of_their_own(
    exported: Exported, exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    folders = {factory.cached_export(path) for path in (exported.checkpoint, other)}
    monkeypatch.setattr(factory, "version", lambda _: "9999.1")
    folders.add(factory.cached_export(exported.checkpoint))
    assert len(folders) == exporter.calls == 3


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
@pytest.mark.parametrize("setting", ["elsewhere", ""])
def test_the_cache_is_where_the_system_keeps_caches(
    exported: Exported,
    exporter: Exporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / setting) if setting else "")
    folder = factory.cached_export(exported.checkpoint)
    assert folder.parent == tmp_path / (setting or ".cache") / "purnet"


def test_two_processes_may_export_the_same(exported: Exported, tmp_path: Path) -> None:
    ours = shutil.copytree(exported.folder, tmp_path / ".part")
    theirs = shutil.copytree(exported.folder, tmp_path / "export")
    exporting._move(ours, theirs)
    assert is_export(theirs)
    foreign = tmp_path / "foreign"
    (foreign / "of").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        exporting._move(ours, foreign)


def test_the_command_says_how_close_it_came(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "export", lambda *_: exported.difference)
    arguments = ["export", str(exported.checkpoint), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "of pixels from eager float32" in result.output


def test_the_command_names_a_bad_checkpoint(tmp_path: Path) -> None:
    arguments = ["export", str(tmp_path / "none.pth"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "none.pth" in result.output
