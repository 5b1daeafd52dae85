"""What passes the gate, and that peers are given our codec."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from benchmarks.peers import gate
from benchmarks.peers.environments import ROOT, without
from benchmarks.peers.peers import PEERS
from benchmarks.peers.server import Limits, template_values
from benchmarks.peers.servers import codec as peers_codec
from PIL import Image

from purnet_serve.images import codec
from purnet_serve.images.header import Limits as ImageLimits
from purnet_serve.images.header import check_header

OURS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_equal_masks_pass():
    passed = gate.compare([OURS, OURS], [OURS, OURS], same_network=True)
    assert (passed.masks, passed.identical, passed.worst_mean) == (2, 2, 0.0)


def test_each_mask_is_judged_by_itself():
    other = OURS + np.uint8(3)
    with pytest.raises(ValueError, match=r"3\.00/255"):
        gate.compare([*[OURS] * 9, other], [OURS] * 10, same_network=True)


def test_a_mask_below_ours_is_as_far_as_one_above():
    assert gate.compare([OURS], [OURS + np.uint8(1)], same_network=True).worst_mean == 1.0
    assert gate.compare([OURS + np.uint8(1)], [OURS], same_network=True).worst_mean == 1.0


def test_another_network_needs_the_right_sizes_only():
    assert gate.compare([OURS + np.uint8(99)], [OURS], same_network=False).worst_mean is None
    with pytest.raises(ValueError, match="a mask is"):
        gate.compare([OURS[:4]], [OURS], same_network=False)


@pytest.mark.parametrize("orientation", [1, 6])
def test_peers_decode_and_encode_as_the_service_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    photo.save(out := BytesIO(), "JPEG", exif=exif)
    upload = out.getvalue()

    pixels, size = peers_codec.decode(upload)
    header = check_header(upload, ImageLimits(10**8, 10**5))
    decoded = codec.decode(upload, peers_codec.INPUT_SIZE, header)
    np.testing.assert_array_equal(pixels, decoded.pixels)
    assert size == (decoded.width, decoded.height)

    mask = pixels[..., 0]
    answer = codec.encode(mask, decoded, None, codec.Options())
    assert peers_codec.encode(mask, size) == answer.body


@pytest.mark.parametrize("limits", [None, Limits(1.0, 20)], ids=["default", "deadline"])
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_everything_a_peer_is_told_can_be_filled_in(peer, limits, tmp_path):
    values = template_values(peer, 21_000, {0}, tmp_path, limits)
    told = [*peer.command, *peer.env.values()]
    if limits is not None:
        told += [*peer.deadline_args, *peer.deadline_env.values(), *peer.deadline_headers.values()]
    filled = [text.format(**values) for text in told]
    assert any("21000" in text for text in filled) or peer.name.startswith(("litserve", "ray"))


def test_versions_a_peer_needs_otherwise_are_not_pinned():
    pins = "# pins\nCertifi==1\nfoo==2\n"
    assert without(pins, ["certifi"]) == "# pins\nfoo==2\n"
    assert "numpy==" in without((ROOT / "constraints.txt").read_text(), ["certifi"])
