"""Checkpoints of every kind in, errors that name tensors out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

from purnet.errors import CheckpointError
from purnet.network import released
from purnet.network.checkpoint import (
    CheckpointInfo,
    load,
    load_with_info,
    read,
    save,
)
from purnet.training.resume import RunState

pytestmark = pytest.mark.needs_torch

LITE = CheckpointInfo(
    variant="purnet-lite0", input_size=320, attention=True, notes={"trained": "not at all"}
)
State = dict[str, Tensor]


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


def test_half_keeps_vectors_and_constants_whole(tmp_path: Path, lite: State) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save(lite, whole, LITE, half=False)
    save(lite, half, LITE, half=True)

    found = read(half)[1]

    assert half.stat().st_size < 0.6 * whole.stat().st_size
    for name, tensor in lite.items():
        is_whole = tensor.ndim <= 1 or name.startswith("normalize.")
        exact = tensor if is_whole else tensor.half().to(tensor.dtype)
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], exact), name


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_half_refuses_what_16_bits_do_not_hold(tmp_path: Path, lite: State, number: float) -> None:
    path = tmp_path / "a.safetensors"
    name = next(name for name, tensor in lite.items() if tensor.ndim == 4)
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
        recipe="",
        variant="purnet-lite0",
        data="",
        stages=[0, 1],
        init="",
        stage=1,
        iteration=7,
        best_mae=1.0,
        network=other,
        averaged=lite,
        optimizer={},
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


def test_stages_2_and_3_have_attentions(
    pth: Callable[[Any], Path], random_state: Callable[..., State]
) -> None:
    ours = random_state(released.VARIANT, attention=True)
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
        ({"variant": 1, "stage": 0, "iteration": 0, "averaged": {}}, "which variant"),
        ({"variant": "x", "stage": 0, "iteration": 0, "averaged": {}}, "unknown variant 'x'"),
        ({"variant": "", "stage": 0, "iteration": 0, "averaged": 5}, "holds a int"),
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
        for size in (5, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match=r"not a whole|is cut short"):
                load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
        (b"just text", "not a whole"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "weights.pth")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder without export"):
        load(tmp_path)
    (tmp_path / "export.json").touch()
    with pytest.raises(CheckpointError, match="is an export: name the checkpoint"):
        load(tmp_path)
