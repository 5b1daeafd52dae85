"""`purnet convert`: other layouts in, means of several, and where nothing can be written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from typer.testing import CliRunner

from purnet.cli.app import app
from purnet.errors import CheckpointError
from purnet.io import sha256_of
from purnet.network.checkpoint import CheckpointInfo, convert, load, read, save

pytestmark = pytest.mark.needs_torch

LITE = CheckpointInfo(variant="purnet-lite0", input_size=320, attention=True)
State = dict[str, Tensor]


def test_convert(tmp_path: Path, pth: Callable[[Any], Path], stage1: State) -> None:
    source, target = pth(stage1), tmp_path / "stage1.safetensors"

    result = CliRunner().invoke(app, ["convert", str(source), str(target)])

    assert result.exit_code == 0, result.output
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["variant"] == "purnet-resnet50"
    assert metadata["input_size"] == "320"
    assert json.loads(metadata["attention"]) is False
    assert metadata["source_sha256"] == sha256_of(source)
    converted, wanted = load(target).state_dict(), load(source).state_dict()
    assert converted.keys() == wanted.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in wanted.items())


def test_convert_says_what_is_wrong(tmp_path: Path, pth: Callable[[Any], Path]) -> None:
    source = pth(nn.Linear(2, 2).state_dict())

    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out.safetensors")])

    assert result.exit_code == 2
    assert "2 extra (weight, bias)" in result.output
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_says_where_it_cannot_write(tmp_path: Path, lite: State) -> None:
    source = tmp_path / "a.safetensors"
    save(lite, source, LITE, half=False)

    for target, told in ((tmp_path / "no" / "b", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CheckpointError, match=f"cannot be written: {told}"):
            convert(source, target, half=False)


def test_the_mean_of_three(tmp_path: Path, lite: State) -> None:
    """By the command; what is equal in all stays what it is, to the last bit."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, path in enumerate(paths):
        state = {
            name: tensor + number if name.startswith("promotion") else tensor
            for name, tensor in lite.items()
        }
        save(state, path, LITE, half=False)
    target = tmp_path / "mean.safetensors"
    first, *others = map(str, paths)
    flags = [word for other in others for word in ("--average-with", other)]

    result = CliRunner().invoke(app, ["convert", first, str(target), *flags])

    assert result.exit_code == 0, result.output
    info, found = read(target)
    assert info.notes["source"] == "0.safetensors, 1.safetensors, 2.safetensors"
    assert info.notes["source_sha256"] == ", ".join(map(sha256_of, paths))
    for name, tensor in lite.items():
        moved = name.startswith("promotion") and tensor.is_floating_point()
        if moved:
            torch.testing.assert_close(found[name], tensor + 1)
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("variant", ["purnet-lite0", "purnet-lite0-s2"])
def test_logits_are_scaled(
    tmp_path: Path, variant: str, random_state: Callable[..., State]
) -> None:
    """By the command. The refinement of edges must see the finest logits as before."""
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    state = random_state(variant, attention=True)
    if "purification.edges.logits.weight" in state:  # it starts as 0
        torch.nn.init.ones_(state["purification.edges.logits.weight"])
    save(state, source, replace(LITE, variant=variant), half=False)

    arguments = ["convert", str(source), str(target), "--scale-logits", "2"]
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    assert read(target)[0].notes["scale_logits"] == "2"
    before, after = load(source), load(target)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = 2 * before.predict(images)
        torch.testing.assert_close(after.predict(images), wanted, rtol=1e-4, atol=1e-4)
        levels = zip(before(images).saliency[-1:], after(images).saliency[-1:], strict=True)
    assert all(torch.equal(one, other) for one, other in levels)


def test_factors_of_several_scalings_are_multiplied(tmp_path: Path, lite: State) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(5)]
    save(lite, paths[0], LITE, half=False)
    notes = [
        convert(source, target, half=False, scale_logits=factor).notes.get("scale_logits")
        for source, target, factor in zip(paths, paths[1:], (2, 1.5, 1, 1 / 3), strict=False)
    ]
    assert notes == ["2", "3", "3", None]


def test_a_mean_is_of_logits_that_were_scaled_alike(tmp_path: Path, lite: State) -> None:
    names = ("plain", "doubled", "also doubled", "unknown")
    plain, doubled, also, unknown = (tmp_path / f"{name}.safetensors" for name in names)
    save(lite, plain, LITE, half=False)
    save(lite, unknown, replace(LITE, notes={"scale_logits": "much"}), half=False)
    for path in (doubled, also):
        convert(plain, path, half=False, scale_logits=2)
    mean = tmp_path / "mean.safetensors"

    with pytest.raises(CheckpointError, match=r"doubled.* its logits were scaled by 2, not 1"):
        convert(plain, mean, half=False, average_with=[doubled])
    with pytest.raises(CheckpointError, match="its scale_logits 'much' is no number"):
        convert(unknown, mean, half=False)
    assert not mean.exists()

    info = convert(doubled, mean, half=False, average_with=[also], scale_logits=2)
    assert info.notes["scale_logits"] == "4"


def test_a_checkpoint_that_is_read_is_not_written_over(tmp_path: Path, lite: State) -> None:
    """`convert A B --average-with C` would lose B where a mean of three was meant."""
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for path in (one, other):
        save(lite, path, LITE, half=False)
    before = other.read_bytes()
    for source, others in ((one, [other]), (other, [])):
        with pytest.raises(CheckpointError, match=r"other\.safetensors is one of the checkpoints"):
            convert(source, other, half=True, average_with=others)
    assert other.read_bytes() == before


def test_a_mean_is_not_trained_as_one_of_its_parts_was(tmp_path: Path, lite: State) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for path in (one, other):
        save(lite, path, replace(LITE, notes={"trained": "somehow"}), half=False)

    alone = convert(one, tmp_path / "alone.safetensors", half=False)
    mean = convert(one, tmp_path / "mean.safetensors", half=False, average_with=[other])

    assert alone.notes["trained"] == "somehow"
    assert mean.notes.keys() == {"source", "source_sha256"}


def test_no_mean_of_different_networks(
    tmp_path: Path, lite: State, random_state: Callable[..., State]
) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save(lite, one, LITE, half=False)
    state = random_state("purnet-lite0", attention=False)
    save(state, other, replace(LITE, attention=False), half=False)
    target = tmp_path / "mean.safetensors"

    with pytest.raises(CheckpointError, match=r"other.* without attentions, not .* with atten"):
        convert(one, target, half=False, average_with=[other])

    assert not target.exists()


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, lite: State) -> None:
    source, pipe = tmp_path / "a.safetensors", tmp_path / "pipe"
    save(lite, source, LITE, half=False)
    os.mkfifo(pipe)

    with pytest.raises(CheckpointError, match="is no file"):
        convert(source, pipe, half=False)

    assert pipe.is_fifo()
