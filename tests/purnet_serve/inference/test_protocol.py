from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purnet_serve.inference import protocol as messages
from purnet_serve.inference.protocol import ProtocolError, decode, encode

READY = messages.Ready(2, [1, 2, 4], [0.25, 0.375, 0.5], 1 << 40, 0)
EVERY = [
    messages.Load("module:attribute", None, "auto", 1),
    messages.Load("module:attribute", "a folder/ünïcode\n.safetensors", "cuda:0", 16),
    messages.Loaded("lite0", "ab" * 32, 320, "cpu", "eager", 2),
    messages.Warmup(2, 16, 320),
    READY,
    messages.Run(7, 1, 16),
    messages.Done(7, [True, False], 0.125, 1, 2),
    messages.OutOfMemory(7),
    messages.LoadFailed("two\nlines"),
    messages.EngineFailed("CUDA error"),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line_and_comes_back_as_it_was(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


@given(st.binary(max_size=200))
def test_anything_else_is_a_protocol_error(line):
    with pytest.raises(ProtocolError):
        decode(line)


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"[]",
        b"7",
        b'{"kind": "Load"}',
        b'{"kind": "Nobody", "number": 1}',
        b'{"kind": "OutOfMemory", "number": 1, "more": 2}',
        b'{"kind": ["OutOfMemory"], "number": 1}',
        encode(READY).replace(b"0.25", b"0.0"),
        encode(READY).replace(b"[1, 2, 4]", b"[]"),
        encode(READY).replace(b'"streams": 2', b'"streams": 0'),
    ],
)
def test_almost_a_message_is_a_protocol_error(line):
    with pytest.raises(ProtocolError):
        decode(line)
