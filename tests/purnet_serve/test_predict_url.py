"""`purnet predict --url` against the real server; the fake network's mask is the red channel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from photos import encoded, opened, scene
from service_process import fake_service
from typer.testing import CliRunner

from purnet.errors import ModelError
from purnet_serve.cli import app
from purnet_serve.cli import predict as command
from purnet_serve.settings import unknown_variables

invoke = CliRunner().invoke


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service(PURNET_LOG_LEVEL="error") as (_, address):
        yield address


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(12):
        scene(40 + number, 30).save(folder / f"{number:02}.png")
    scene(64, 64).save(folder / "more" / "x.jpg")
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_is_sent_as_easily_as_it_is_run_here(
    url: str, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(photos), "-r", "-o", str(out), "--url", url]
    result = invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"13 of 13 written to {out}" in result.stderr
    assert "notes.txt: its name is not that of a photo" in result.stderr
    for number in range(12):
        mask = opened((out / f"{number:02}.png").read_bytes())
        assert (mask.mode, mask.size) == ("L", (40 + number, 30))
        assert np.asarray(mask)[:, -1].min() > 200
    assert opened((out / "more" / "x.png").read_bytes()).size == (64, 64)

    (out / "03.png").unlink()
    there = invoke(app, arguments)
    assert there.exit_code == 2
    assert "is there already: give --resume to skip it or --overwrite" in there.stderr
    assert "1 of 1 written" in invoke(app, [*arguments, "--resume"]).stderr
    assert "13 of 13 written" in invoke(app, [*arguments, "--overwrite"]).stderr


def test_a_photo_that_fails_is_named_with_its_request_and_the_rest_is_done(
    url: str, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(encoded(scene(), "JPEG")[:200])
    result = invoke(app, ["predict", str(photos), "-o", str(tmp_path / "out"), "--url", url])
    assert result.exit_code == 1
    assert f"12 of 13 written to {tmp_path / 'out'}" in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "broken.jpg" in line]
    assert "broken_image" in line
    assert "request " in line


def test_a_cutout_of_standard_input_goes_to_standard_output(url: str) -> None:
    photo = encoded(scene())
    result = invoke(app, ["predict", "-", "--cutout", "--url", url], input=photo)
    assert result.exit_code == 0, result.stderr
    cutout = opened(result.stdout_bytes)
    assert (cutout.mode, cutout.size) == ("RGBA", (96, 64))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "http://127.0.0.1:9"], "No answer from the service"),
        (["--url", "127.0.0.1:8000"], "is no address"),
        (["--url", "http://x", "--device", "cpu"], "are the service's"),
        (["--url", "http://x", "--checkpoint", "c"], "are the service's"),
    ],
)
def test_what_cannot_begin_exits_with_2(
    photos: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = invoke(app, ["predict", str(photos), "-o", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_the_key_may_come_from_the_environment(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"right").hexdigest())
    with fake_service(PURNET_API_KEYS_FILE=str(keys), PURNET_LOG_LEVEL="error") as (_, url):
        arguments = ["predict", str(photos / "00.png"), "-o", str(tmp_path / "out"), "--url", url]
        refused = invoke(app, arguments)
        assert (refused.exit_code, "key_missing" in refused.stderr) == (2, True)
        monkeypatch.setenv("PURNET_API_KEY", "right")
        assert invoke(app, arguments).exit_code == 0
    assert unknown_variables(["PURNET_API_KEY"]) == {}


def test_a_service_that_goes_away_ends_the_run_and_says_how_to_go_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RETRIES", 0)
    sources = [photos / "00.png", photos / "01.png", *[photos / "02.png"] * 40]
    with fake_service(PURNET_LOG_LEVEL="error") as (service, url):
        answers = command.answers_of(url, sources, api_key=None, with_cutout=False)
        assert isinstance(next(answers), bytes)
        service.process.kill()
        service.wait()
        with pytest.raises(ModelError, match="--resume goes on from here"):
            list(answers)
