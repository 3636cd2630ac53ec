# SPDX-License-Identifier: Apache-2.0
"""Interfaces, and a socket for each of them and each multicast group.

Each socket hears its group on its interface only, and sends there, with a hop limit of 1 and whatever the routes: it
works where there is no default route. Sockets share address and port: several daemons of a host hear each other.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from selened.neighbours import Network

_SO_BINDTOIFINDEX: Final = 62  # asm-generic/socket.h, since Linux 5.1; the module socket lacks it
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_NETLINK_GROUPS: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


class Interface(NamedTuple):
    """An interface that is up, and its networks."""

    name: str
    number: int
    networks: tuple[Network, ...]


def interfaces(names: Sequence[str], address: str) -> list[Interface]:
    """The interfaces with these names that are up; without names the one that has `address`."""
    import psutil

    stats = psutil.net_if_stats()
    found = []
    for name, entries in psutil.net_if_addrs().items():
        wanted = name in names if names else any(entry.address == address for entry in entries)
        if wanted and name in stats and stats[name].isup:
            networks = [_network(entry.address, entry.netmask) for entry in entries if entry.family in _FAMILIES]
            with contextlib.suppress(OSError):  # it has just gone
                found.append(Interface(name, socket.if_nametoindex(name), tuple(networks)))
    return found


def _network(address: str, netmask: str | None) -> Network:
    ip = ipaddress.ip_address(address.partition("%")[0])
    prefix = f"{int(ipaddress.ip_address(netmask)):b}".count("1") if netmask else ip.max_prefixlen
    return ipaddress.ip_network(f"{ip}/{prefix}", strict=False)


def join(group: str, port: int, interface: Interface, address: str) -> socket.socket:
    """A socket that hears `group` on `interface`, and sends to it from `address` if that is of its family. Raises
    OSError."""
    version = ipaddress.ip_address(group).version
    if not any(network.version == version for network in interface.networks):
        raise OSError(0, f"{interface.name} has no IPv{version} address")
    sock = socket.socket(_FAMILIES[version == 6], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, interface.number)
        if version == 6:
            _join_ipv6(sock, group, interface.number)
        else:
            own = address if ipaddress.ip_address(address).version == 4 else "0.0.0.0"
            _join_ipv4(sock, group, interface.number, own)
        sock.bind((group, port, 0, interface.number) if version == 6 else (group, port))
    except OSError:
        sock.close()
        raise
    return sock


def _join_ipv4(sock: socket.socket, group: str, index: int, own: str) -> None:
    def mreqn(address: str) -> bytes:
        return struct.pack("=4s4si", socket.inet_aton(group), socket.inet_aton(address), index)

    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreqn("0.0.0.0"))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, mreqn(own))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)


def _join_ipv6(sock: socket.socket, group: str, index: int) -> None:
    request = struct.pack("=16si", socket.inet_pton(socket.AF_INET6, group), index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)


def watch() -> socket.socket:
    """A socket that becomes readable when an interface or an address comes or goes (rtnetlink(7)). Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        sock.bind((0, _NETLINK_GROUPS))
    except OSError:
        sock.close()
        raise
    return sock


def drain(sock: socket.socket) -> None:
    """Read away what is there; that some was lost (ENOBUFS) says the same."""
    while True:
        try:
            sock.recv(65536)
        except OSError as failure:
            if failure.errno != errno.ENOBUFS:
                return
