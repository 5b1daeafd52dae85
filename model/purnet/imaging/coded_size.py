"""The sizes that AV1 and HEVC streams declare in their own headers, which decoders allocate by.

Sources: AV1 bitstream specification, sections 5.3 and 5.5; ITU-T H.265, sections 7.3.1 and 7.3.2.2;
ISO/IEC 14496-15, section 8.3.3.1 (hvcC).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

# A still image has some ten; a file of empty ones could hold millions.
MAX_UNITS = 1024
MAX_PARAMETER_SETS = 64
_SEQUENCE_HEADER = 1
_SEQUENCE_PARAMETER_SET = 33
_READ_BYTES = 256
"""What is read of a header: sizes come early in it."""


class CodedSizeError(ValueError):
    """The stream is damaged; its text says how."""


class _Bits:
    """Reads numbers of any number of bits, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, bits: int) -> int:
        self._left -= bits
        if self._left < 0:
            raise CodedSizeError("a header of its pixels is cut short")
        return self._value >> self._left & (1 << bits) - 1

    def read_exp_golomb(self) -> int:
        """ue(v) of H.265, uvlc() of AV1."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise CodedSizeError("a header of its pixels is damaged")
        return (1 << zeros) - 1 + self.read(zeros)


def av1_sizes(stream: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of every sequence header among the units of an AV1 stream."""
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(stream):
            return
        flags = stream[at]
        at += 2 if flags & 4 else 1
        size = len(stream) - at
        if flags & 2:
            size, at = _leb128(stream, at)
        if flags >> 3 & 15 == _SEQUENCE_HEADER:
            yield _av1_size(_Bits(stream[at : at + min(size, _READ_BYTES)]))
        at += size
    raise CodedSizeError("its pixels come in too many pieces")


def _leb128(stream: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        if at >= len(stream):
            break
        byte, at = stream[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CodedSizeError("a piece of its pixels has no length")


def _av1_size(bits: _Bits) -> tuple[int, int]:
    bits.read(3 + 1)  # profile, still picture
    if bits.read(1):  # reduced header of a still picture
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing information
        bits.read(32 + 32)
        if bits.read(1):
            bits.read_exp_golomb()
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    has_delays = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # level
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delays and bits.read(1):
            bits.read(4)


def hevc_sizes(configuration: bytes, stream: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of every sequence parameter set of an HEVC item.

    `configuration` is its hvcC property, `stream` its units with their lengths before them.
    """
    if len(configuration) < 23:
        raise CodedSizeError("its configuration is cut short")
    length_bytes = (configuration[21] & 3) + 1
    at = 23
    for _ in range(min(configuration[22], MAX_PARAMETER_SETS)):
        count, at = int.from_bytes(configuration[at + 1 : at + 3], "big"), at + 3
        at = yield from _parameter_sets(configuration, at, 2, min(count, MAX_PARAMETER_SETS))
    if (yield from _parameter_sets(stream, 0, length_bytes, MAX_UNITS)) < len(stream):
        raise CodedSizeError("its pixels come in too many pieces")


def _parameter_sets(
    data: bytes, at: int, length_bytes: int, count: int
) -> Generator[tuple[int, int], None, int]:
    """Sizes of the parameter sets among `count` units; returns where they end."""
    for _ in range(count):
        if at >= len(data):
            return at
        begin = at + length_bytes
        size = int.from_bytes(data[at:begin], "big")
        at = begin + size
        if at > len(data):
            raise CodedSizeError("a piece of its pixels is cut short")
        if size > 2 and data[begin] >> 1 & 63 == _SEQUENCE_PARAMETER_SET:
            unit = data[begin + 2 : begin + 2 + min(size - 2, _READ_BYTES)]
            yield _hevc_size(_Bits(unit.replace(b"\0\0\3", b"\0\0")))
    return at


def _hevc_size(bits: _Bits) -> tuple[int, int]:
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + 96)  # nesting; profile, tier and level
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.read_exp_golomb()  # its number
    if bits.read_exp_golomb() == 3:  # 4:4:4
        bits.read(1)
    return bits.read_exp_golomb(), bits.read_exp_golomb()
