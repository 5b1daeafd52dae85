"""Checkpoints of every kind in, errors that name tensors out."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18
from typer.testing import CliRunner

from model import released, variants
from model.checkpoint import (
    CheckpointInfo,
    convert,
    load,
    load_with_info,
    read,
    save,
)
from model.cli import app
from model.digest import sha256_of
from model.errors import CheckpointError
from model.training.state import RunState

pytestmark = pytest.mark.needs_torch

LITE = CheckpointInfo(
    variant="purnet-lite0", input_size=320, attention=True, notes={"trained": "not at all"}
)
State = dict[str, Tensor]


def _state(name: str, *, attention: bool) -> State:
    """Tensors unlike those that a network starts with, statistics included."""
    torch.manual_seed(1)
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 3
        for name, tensor in variants.build(name, attention=attention).state_dict().items()
    }


@pytest.fixture(scope="module")
def lite() -> State:
    return _state("purnet-lite0", attention=True)


@pytest.fixture(scope="module")
def stage1() -> State:
    """A state dict of the authors' stage 1."""
    ours = _state(released.VARIANT, attention=False)
    return {released.theirs(k): v for k, v in ours.items() if not k.startswith("normalize.")}


@pytest.fixture
def pth(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "some.pth"
        torch.save(content, path)
        return path

    return write


def _assert_equal(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)


# --- ours


def test_ours_comes_back(tmp_path: Path, lite: State) -> None:
    path = tmp_path / "a.safetensors"
    save(lite, path, LITE, half=False)

    network, info = load_with_info(path)

    assert info == LITE
    assert not network.training
    _assert_equal(network.state_dict(), lite)


def test_half_keeps_vectors_whole(tmp_path: Path, lite: State) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save(lite, whole, LITE, half=False)
    save(lite, half, LITE, half=True)

    found = read(half)[1]

    assert half.stat().st_size < 0.6 * whole.stat().st_size
    for name, tensor in lite.items():
        exact = tensor if tensor.ndim <= 1 else tensor.half().to(tensor.dtype)
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], exact), name


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_half_refuses_what_16_bits_do_not_hold(tmp_path: Path, lite: State, number: float) -> None:
    path = tmp_path / "a.safetensors"
    name = next(name for name, tensor in lite.items() if tensor.ndim > 1)
    wrong = lite | {name: torch.full_like(lite[name], number)}

    with pytest.raises(CheckpointError, match=rf"not written: 1 tensors .*{name}"):
        save(wrong, path, LITE, half=True)

    assert not path.exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, lite: State) -> None:
    path, name = tmp_path / "a.safetensors", next(iter(lite))
    wrong = lite | {name: torch.full_like(lite[name], float("nan"))}
    metadata = {
        "format": "purnet-1",
        "variant": "purnet-lite0",
        "input_size": "320",
        "attention": "true",
    }
    save_file(wrong, path, metadata)

    with pytest.raises(CheckpointError, match=f"not finite .*{name}"):
        read(path)


def test_others_may_read_what_is_written(tmp_path: Path, lite: State) -> None:
    """As the umask has it: a service seldom runs as the user who trained."""
    path, plain = tmp_path / "a.safetensors", tmp_path / "plain"
    plain.write_text("")
    save(lite, path, LITE, half=True)

    assert path.stat().st_mode == plain.stat().st_mode


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


def test_a_mean_is_not_trained_as_one_of_its_parts_was(tmp_path: Path, lite: State) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for path in (one, other):
        save(lite, path, replace(LITE, notes={"trained": "somehow"}), half=False)

    alone = convert(one, tmp_path / "alone.safetensors", half=False)
    mean = convert(one, tmp_path / "mean.safetensors", half=False, average_with=[other])

    assert alone.notes["trained"] == "somehow"
    assert mean.notes.keys() == {"source", "source_sha256"}


def test_no_mean_of_different_networks(tmp_path: Path, lite: State) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save(lite, one, LITE, half=False)
    state = _state("purnet-lite0", attention=False)
    save(state, other, replace(LITE, attention=False), half=False)
    target = tmp_path / "mean.safetensors"

    with pytest.raises(CheckpointError, match=r"other.* without attentions, not .* with atten"):
        convert(one, target, half=False, average_with=[other])

    assert not target.exists()


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, "does not say that it is a PurNet checkpoint"),
        ({"format": "purnet-1"}, "incomplete: 'variant'"),
        (
            {
                "format": "purnet-1",
                "variant": "purnet-huge",
                "input_size": "320",
                "attention": "true",
            },
            "unknown variant 'purnet-huge'",
        ),
        (
            {
                "format": "purnet-1",
                "variant": "purnet-lite0",
                "input_size": "321",
                "attention": "true",
            },
            "input size 321 is not a multiple of 32",
        ),
    ],
)
def test_metadata_is_checked(
    tmp_path: Path, lite: State, metadata: dict[str, str] | None, told: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(lite, path, metadata)

    with pytest.raises(CheckpointError, match=told):
        load(path)


def test_tensors_are_named(tmp_path: Path, lite: State) -> None:
    path = tmp_path / "a.safetensors"
    wrong = lite | {"stowaway": torch.zeros(1), "normalize.mean": torch.zeros(4)}
    del wrong["purification.branches.2.head.logits.weight"]
    save(wrong, path, LITE, half=False)

    with pytest.raises(CheckpointError) as caught:
        read(path)

    assert "1 missing (purification.branches.2.head.logits.weight)" in str(caught.value)
    assert "1 extra (stowaway)" in str(caught.value)
    assert "1 misshapen (normalize.mean (4,) for (3, 1, 1))" in str(caught.value)


def test_resume_file_gives_averaged_weights(tmp_path: Path, lite: State) -> None:
    path = tmp_path / "resume.pt"
    other = {name: torch.zeros_like(tensor) for name, tensor in lite.items()}
    RunState(
        recipe="Recipe(variant='purnet-lite0', seed=1)",
        pairs="",
        stage=1,
        iteration=7,
        best_mae=1.0,
        network=other,
        averaged=lite,
        optimiser={},
        rng=[],
    ).save(path)

    info, tensors = read(path)

    assert (info.variant, info.input_size, info.attention) == ("purnet-lite0", 320, True)
    _assert_equal(tensors, lite)


# --- theirs


def test_released_in_any_order_and_wrapping(pth: Callable[[Any], Path], stage1: State) -> None:
    names = list(stage1)
    random.Random(0).shuffle(names)

    plain = load(pth(stage1)).state_dict()
    shuffled = load(pth({f"module.{name}": stage1[name] for name in names})).state_dict()

    assert {released.theirs(name) for name in plain if "normalize" not in name} == set(stage1)
    _assert_equal(shuffled, plain)


def test_stages_2_and_3_have_attentions(pth: Callable[[Any], Path]) -> None:
    ours = _state(released.VARIANT, attention=True)
    theirs = {released.theirs(k): v for k, v in ours.items() if not k.startswith("normalize.")}

    network, info = load_with_info(pth(theirs))

    assert info == CheckpointInfo(variant="purnet-resnet50", input_size=320, attention=True)
    assert network.promotion is not None
    weight = network.state_dict()["rectification.branches.4.error_head.upsample.weight"]
    assert torch.equal(weight, theirs["ea_e_predict5_e_upscore.weight"])


def test_released_faults_are_told_in_their_names(pth: Callable[[Any], Path], stage1: State) -> None:
    wrong = stage1 | {"predict9.6.weight": torch.zeros(1), "convert2.0.bias": torch.zeros(7)}
    wrong["predict5.1.num_batches_tracked"] = torch.zeros(())
    del wrong["feature_upscore4.3.weight"]

    with pytest.raises(CheckpointError) as caught:
        load(pth(wrong))

    assert "1 missing (feature_upscore4.3.weight)" in str(caught.value)
    assert "1 extra (predict9.6.weight)" in str(caught.value)
    assert "convert2.0.bias (7,) for (128,)" in str(caught.value)
    assert "predict5.1.num_batches_tracked () for () torch.int64" in str(caught.value)


# --- neither


def test_another_network_is_told_apart(pth: Callable[[Any], Path]) -> None:
    with pytest.raises(CheckpointError, match=r"missing \(layer0\.0\.weight.*extra \(conv1\.wei"):
        load(pth(resnet18().state_dict()))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        ({"epoch": 3, "state_dict": {}}, "epoch, state_dict are not tensors"),
        ({}, "missing"),
        ({"convert1.0.bias": torch.zeros(128, device="meta")}, r"\(128,\) meta for \(128,\)"),
        ({"convert1.0.bias": torch.zeros(128, dtype=torch.cfloat)}, "torch.complex64 for"),
        ({"module.convert1.0.bias": torch.zeros(9), "convert1.0.bias": torch.zeros(9)}, "twice"),
        ({"recipe": "?", "stage": 0, "iteration": 0, "averaged": {}}, "which variant"),
        (
            {"recipe": "Recipe(variant='x'", "stage": 0, "iteration": 0, "averaged": {}},
            "unknown variant 'x'",
        ),
        ({"recipe": "", "stage": 0, "iteration": 0, "averaged": 5}, "holds a int"),
    ],
)
def test_strange_contents(pth: Callable[[Any], Path], content: Any, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        load(pth(content))


class _Payload:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, stage1: State, as_zip: bool
) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    torch.save(
        {**stage1, "convert1.0.bias": _Payload(proof)}, path, _use_new_zipfile_serialization=as_zip
    )

    with pytest.raises(CheckpointError, match="could run code"):
        load(path)

    assert not proof.exists()


def test_truncated_and_foreign_files(tmp_path: Path, stage1: State, lite: State) -> None:
    released_file, ours = tmp_path / "stage1.pth", tmp_path / "a.safetensors"
    torch.save(stage1, released_file)
    save(lite, ours, LITE, half=False)
    path = tmp_path / "broken"
    for whole in (released_file.read_bytes(), ours.read_bytes()):
        for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match="not a whole"):
                load(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match="not a whole"):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="Is a directory"):
        load(tmp_path)


# --- writing


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, lite: State) -> None:
    source, pipe = tmp_path / "a.safetensors", tmp_path / "pipe"
    save(lite, source, LITE, half=False)
    os.mkfifo(pipe)

    with pytest.raises(CheckpointError, match="is no file"):
        convert(source, pipe, half=False)

    assert pipe.is_fifo()


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
    _assert_equal(load(target).state_dict(), load(source).state_dict())


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
