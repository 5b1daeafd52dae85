from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from folders import lock
from PIL import Image
from typer.testing import CliRunner

from purnet.cli.evaluate import evaluate
from purnet.data.pairs import is_held_out
from purnet.errors import CheckpointError, NotFiniteError
from purnet.evaluation import scoring
from purnet.evaluation.plots import sheet_size
from purnet.evaluation.report import Report
from purnet.inference import factory

STEMS = ("good", "middling", "poor")

app = typer.Typer()
app.command()(evaluate)
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@dataclass
class FakeEngine:
    name: str = "fake"
    device: str = "cpu"


class BrightnessPredictor:
    """Says that bright is salient; the photos it is given are already masks."""

    engine = FakeEngine()
    variant = "purnet-fake"
    sha256 = "ab" * 32
    input_size = 8

    def predict(self, image: Image.Image) -> np.ndarray:
        assert image.mode == "RGB"
        return np.array(image.convert("L"))


@pytest.fixture
def loaded(monkeypatch):
    """What `load` was called with; it answers with a fake."""
    calls = []

    def load(checkpoint=None, *, device="auto"):
        calls.append((checkpoint, device))
        return BrightnessPredictor()

    monkeypatch.setattr(factory, "load", load)
    return calls


@pytest.fixture
def telling(disk):
    """The data set, its photos being its masks in PNG, so that brightness finds the object."""
    for mask in disk.truth.iterdir():
        (disk.dataset / "image" / f"{mask.stem}.jpg").unlink()
        with Image.open(mask) as image:
            image.convert("RGB").save(disk.dataset / "image" / mask.name)
    return disk.dataset


def run(*arguments: object):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_saved_maps_are_scored_printed_and_written(disk, tmp_path):
    json, folder = tmp_path / "out" / "scores.json", tmp_path / "report"
    result = run(disk.predictions, disk.truth, "--json", json, "--report", folder)
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json(json.read_text())
    assert report.maps == str(disk.predictions)
    assert report.sets[0].metrics["purnet_f"] == pytest.approx(0.5)
    assert re.search(r"F \(PurNet\) ↑ .* 0\.5000 ", result.output)
    assert re.search(r"F \(PurNet\) ↑ +threshold ⌊2·mean⌋", result.output)
    assert {path.name for path in folder.iterdir()} == {
        "report.md",
        "report.json",
        "precision-recall.png",
        "mask-contact-sheet.png",
    }
    assert (folder / "report.json").read_text() == json.read_text()


def test_missing_predictions_are_named_and_the_exit_status_says_so(disk):
    (disk.predictions / "poor.png").unlink()
    result = run(disk.predictions, disk.truth)
    assert result.exit_code == 1
    assert "poor: no prediction" in result.output
    assert "2 images" in result.output


def test_other_sizes_are_an_error_unless_resize(disk):
    Image.new("L", (20, 15)).save(disk.predictions / "poor.png")
    refused = run(disk.predictions, disk.truth)
    assert refused.exit_code == 2
    assert "poor.png is 20x15, its truth 40x30" in refused.stderr
    assert run(disk.predictions, disk.truth, "--resize").exit_code == 0


def test_the_model_predicts_a_data_set(telling, loaded, tmp_path):
    json, weights = tmp_path / "scores.json", tmp_path / "w.safetensors"
    result = run(
        *("--dataset", telling, "--checkpoint", weights, "--device", "cuda:1"),
        *("--json", json, "--report", tmp_path / "report"),
    )
    assert result.exit_code == 0, result.output
    assert loaded == [(weights, "cuda:1")]
    report = Report.model_validate_json(json.read_text())
    assert report.maps == f"purnet-fake, sha256 {'ab' * 32}, fake on cpu"
    assert report.sets[0].metrics["mae"] == 0


def test_several_sets_of_the_paper_are_scored_in_one_run(telling, loaded, tmp_path):
    telling.rename(tmp_path / "HKU-IS")
    ecssd = tmp_path / "ECSSD"
    for part in ("image", "mask"):
        (ecssd / part).mkdir(parents=True)
        Image.open(tmp_path / "HKU-IS" / part / "good.png").save(ecssd / part / "a.png")
    folder = tmp_path / "report"
    result = run(
        *("--dataset", "ECSSD", "--dataset", "HKU-IS", "--root", tmp_path, "--report", folder)
    )
    assert result.exit_code == 0, result.output
    assert loaded == [(None, "auto")]
    report = Report.model_validate_json((folder / "report.json").read_text())
    assert [found.name for found in report.sets] == ["ECSSD", "HKU-IS"]
    assert [found.images for found in report.sets] == [1, 3]
    assert (folder / "HKU-IS-contact-sheet.png").exists()
    assert "as published: Li, Su, Xia, Ma, Tian" in result.output


def test_a_broken_photo_is_named_and_the_rest_scored(telling, loaded):
    (telling / "image" / "good.png").write_bytes(b"broken")
    result = run("--dataset", telling)
    assert result.exit_code == 1
    assert "good.png: cannot be read" in result.output


def test_a_photo_the_model_fails_on_is_named_and_the_rest_scored(telling, loaded, monkeypatch):
    seen = []

    def predict(self, image):
        seen.append(image)
        if len(seen) == 1:
            raise NotFiniteError("the network's output is not finite")
        return np.array(image.convert("L"))

    monkeypatch.setattr(BrightnessPredictor, "predict", predict)
    result = run("--dataset", telling)
    assert result.exit_code == 1
    assert "good.png: has no map: the network's output is not finite" in result.output
    assert "2 images" in result.output


def test_two_sets_of_one_name_are_refused(telling, loaded):
    result = run("--dataset", telling, "--dataset", telling)
    assert result.exit_code == 2
    assert "same name" in result.stderr
    assert loaded == []


def test_a_bad_checkpoint_is_one_line_of_error(telling, monkeypatch):
    def load(checkpoint=None, *, device="auto"):
        raise CheckpointError("w.pth is truncated.")

    monkeypatch.setattr(factory, "load", load)
    result = run("--dataset", telling)
    assert result.exit_code == 2
    assert result.stderr.strip() == "w.pth is truncated."


def test_a_set_that_is_not_there_is_an_error(tmp_path, loaded):
    result = run("--dataset", "XPIE", "--root", tmp_path)
    assert result.exit_code == 2
    assert "XPIE is not a folder" in result.stderr
    assert loaded == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("maps",),
        ("maps", "truth", "--dataset", "ECSSD"),
        ("maps", "truth", "--root", "."),
        ("maps", "truth", "--checkpoint", "w.pth"),
        ("maps", "truth", "--device", "cpu"),
        ("--dataset", "ECSSD", "--resize"),
        ("maps", "truth", "--worst", "3"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize("place", ["file/x", "file/x/y.json", "locked/x", "read-only/x/y.json"])
def test_what_could_not_be_written_is_an_error_before_any_work(
    disk, tmp_path, monkeypatch, option, place
):
    (tmp_path / "file").touch()
    for name in ("locked", "read-only"):
        (tmp_path / name).mkdir()
    lock(tmp_path / "locked", monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path / "read-only")
    result = run(disk.predictions, disk.truth, option, tmp_path / place)
    assert result.exit_code == 2
    assert "cannot be written" in re.sub(r"\W+", " ", result.stderr)
    assert result.stdout == ""


def test_a_file_whose_folder_takes_no_new_one_is_an_error_before_any_work(
    disk, tmp_path, monkeypatch
):
    (tmp_path / "old.json").touch()
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    result = run(disk.predictions, disk.truth, "--json", tmp_path / "old.json")
    assert result.exit_code == 2
    assert "is read only" in re.sub(r"\W+", " ", result.stderr)
    assert result.stdout == ""


@pytest.mark.parametrize(("option", "name"), [("--json", "folder"), ("--report", "file")])
def test_a_folder_is_no_file_to_write_and_a_file_no_folder(disk, tmp_path, option, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    result = run(disk.predictions, disk.truth, option, tmp_path / name)
    assert result.exit_code == 2
    assert "; name a" in result.stderr


@pytest.mark.parametrize("option", ["--json", "--report", "--contact-sheet"])
def test_a_pipe_is_neither(disk, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")
    result = run(disk.predictions, disk.truth, option, tmp_path / "pipe")
    assert result.exit_code == 2
    assert "; name a" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_full_disk_is_one_line_after_the_numbers(disk, tmp_path, monkeypatch, option):
    def fail(self, *_arguments, **_options):
        self.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", fail)
    (tmp_path / "old").mkdir()
    target = tmp_path / "old" / "report.json" if option == "--json" else tmp_path / "old"
    (tmp_path / "old" / "report.json").write_bytes(b"old")
    result = run(disk.predictions, disk.truth, option, target)
    assert result.exit_code == 2
    assert "F (PurNet)" in result.stdout
    named = re.escape(str(tmp_path / "old" / "report."))
    assert re.search(rf"{named}\w+ cannot be written: No space left", result.stderr)
    assert isinstance(result.exception, SystemExit)
    assert (tmp_path / "old" / "report.json").read_bytes() == b"old"
    assert not list((tmp_path / "old").glob(".*"))


def test_help_names_conventions_sets_and_exit_statuses():
    text = run("--help").output
    for told in ("--resize", "Exits 0 when every image was scored", "current folder"):
        assert told in text


def test_declaring_the_command_imports_nothing_heavy():
    heavy = "numpy torch matplotlib py_sod_metrics PIL"
    code = (
        "import sys, purnet.cli.evaluate as _;"
        f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_pairs_that_training_holds_out_are_scored_alone(disk, loaded, tmp_path):
    out = tmp_path / "scores.json"
    percent = 50
    kept = [stem for stem in STEMS if is_held_out(stem, percent=percent)]
    assert 0 < len(kept) < len(STEMS)
    (disk.dataset / "image" / f"{next(s for s in STEMS if s not in kept)}.jpg").write_bytes(b"")
    result = runner.invoke(
        app, ["--dataset", str(disk.dataset), "--held-out", str(percent), "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    (scores,) = Report.model_validate_json(out.read_text()).sets
    assert [image.stem for image in scores.scored] == sorted(kept)


def test_files_outside_the_split_that_lack_a_partner_leave_nothing_out(disk, loaded):
    percent = 50
    other = next(stem for stem in STEMS if not is_held_out(stem, percent=percent))
    (disk.truth / f"{other}.png").unlink()
    result = run("--dataset", disk.dataset, "--held-out", percent)
    assert result.exit_code == 0, result.output


def test_no_more_processes_score_than_there_are_processors_to_use(disk, monkeypatch):
    asked = []
    score = scoring.score

    def watched(images, predictor, *, processes, progress):
        asked.append(processes)
        return score(images, predictor, processes=0, progress=progress)

    monkeypatch.setattr(scoring, "score", watched)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 5, 7}, raising=False)
    assert run(disk.predictions, disk.truth).exit_code == 0
    assert asked == [3]


@pytest.mark.parametrize("name", ["worst.png", "worst", "worst.sheet"])
def test_failures_are_drawn(disk, tmp_path, name):
    sheet = tmp_path / "new" / name
    arguments = [str(disk.predictions), str(disk.truth), "--contact-sheet", str(sheet)]
    result = runner.invoke(app, [*arguments, "--worst", "1"])
    assert result.exit_code == 0, result.output
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.size == sheet_size(1)


def test_failures_of_two_sets_do_not_share_a_sheet(disk, loaded):
    name = str(disk.dataset)
    result = runner.invoke(
        app, ["--dataset", name, "--dataset", name, "--contact-sheet", "worst.png"]
    )
    assert result.exit_code == 2
    assert "shows one data set" in result.output


def test_scores_are_compared_with_those_of_an_earlier_run(disk, tmp_path):
    json = tmp_path / "earlier.json"
    (disk.predictions / "poor.png").rename(tmp_path / "poor.png")
    assert run(disk.predictions, disk.truth, "--json", json).exit_code == 1
    (tmp_path / "poor.png").rename(disk.predictions / "poor.png")
    (disk.truth / "middling.png").replace(disk.predictions / "middling.png")
    Image.open(disk.predictions / "middling.png").save(disk.truth / "middling.png")
    result = run(disk.predictions, disk.truth, "--baseline", json)
    assert result.exit_code == 0, result.output
    assert "on the 2 images of both" in result.output
    assert re.search(r"MAE ↓ +│ +0\.0600 +│ +-0\.0600 +│ +0\.0600", result.output)


def test_a_baseline_that_is_none_is_refused_before_anything_is_scored(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "score", pytest.fail)
    result = run(disk.predictions, disk.truth, "--baseline", disk.truth / "good.png")
    assert result.exit_code == 2
    assert "is not a report that --json wrote" in result.stderr
