from __future__ import annotations

import pytest

from purnet_serve.http.addresses import is_public

PUBLIC = [
    "1.1.1.1", "93.184.215.14", "100.63.255.255", "172.32.0.1", "192.167.0.1", "223.255.255.254",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2a00:1450:4001:82a::200e",
    "::ffff:1.1.1.1", "2002:101:101::1", "64:ff9b::101:101",
]  # fmt: skip

HOSTILE = {
    "this machine": ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::"],
    "private networks": ["10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1", "fc00::1",
                         "fd12:3456::1", "fec0::1"],
    "link-local, cloud metadata": ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0"],
    "shared by a provider": ["100.64.0.1", "100.127.255.254", "100.100.100.200"],
    "documentation, tests": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1",
                             "198.19.255.254", "2001:db8::1", "3fff::1"],
    "multicast, broadcast, reserved": ["224.0.0.1", "239.255.255.250", "255.255.255.255",
                                       "240.0.0.1", "ff02::1", "ff0e::1", "100::1", "5f00::1",
                                       "4000::1", "192.88.99.1", "192.0.0.1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:0"],
    "compatible": ["::127.0.0.1", "::10.0.0.1", "::1.1.1.1"],
    "6to4": ["2002:7f00:1::1", "2002:a00:1::", "2002:a9fe:a9fe::", "2002:c0a8:101::1"],
    "NAT64": ["64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "ORCHID, benchmarks": ["2001:10::1", "2001:2::1"],
    "no address": ["", "localhost", "127.1", "0x7f.1", "2130706433", "017700000001", "1.1.1.1/32",
                   "[::1]", "1.1.1.1 ", "\uff11.1.1.1"],
}  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("kind", "address"), [(kind, address) for kind, all_ in HOSTILE.items() for address in all_]
)
def test_no_other_address_is(kind: str, address: str) -> None:
    assert not is_public(address), kind
