"""Which internet addresses are public: those that a stranger may let this service connect to.

Everything else leads, or may lead, to what only this machine or its network can reach: databases,
administration pages, the metadata service of a cloud.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_GLOBAL_UNICAST = ip_network("2000::/3")
"""The only addresses of IPv6 that were ever given out to hosts (RFC 4291)."""
_NAT64 = ip_network("64:ff9b::/96")
"""Ends in the IPv4 address that a translator connects to (RFC 6052)."""
_NOT_FOR_HOSTS = (
    ip_network("192.88.99.0/24"),  # relays of 6to4, taken back by RFC 7526
    ip_network("3fff::/20"),  # documentation, RFC 9637; older Pythons do not know it
)


def is_public(text: str) -> bool:
    """Whether an address is of the public internet, with every IPv4 address embedded in it.

    False for what is no address, and for one with a zone (`fe80::1%eth0`).
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _is_public(address)
    if address.scope_id is not None:
        return False
    embedded = _embedded(address)
    if embedded is not None:
        return _is_public(embedded)
    return address in _GLOBAL_UNICAST and _is_public(address)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if any(address in network for network in _NOT_FOR_HOSTS if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to this one reach in the end, or None.

    A Teredo address (2001::/32) needs no entry: all of it counts as private.
    """
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour
