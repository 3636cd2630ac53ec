# SPDX-License-Identifier: Apache-2.0
"""The sockets of tsn-talker and tsn-listener, and what to do when the kernel gives none.

Numbers of asm-generic/socket.h and linux/net_tstamp.h that the module `socket` lacks are here. Launch times: SO_TXTIME
(Linux 4.19), by CLOCK_TAI, as the etf queueing discipline has them.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tsn_agent._traffic import lib
from tsn_agent.traffic import TrafficError
from tsn_agent.traffic_settings import is_mac

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tsn_agent.traffic_settings import Listen, Talk

_SO_TIMESTAMPING: Final = 37
_SO_MEMINFO: Final = 55
_SO_TXTIME: Final = 61
_SO_RCVBUFFORCE: Final = 33
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_TX_HARDWARE, _TX_SOFTWARE, _RX_HARDWARE, _RX_SOFTWARE, _SOFTWARE, _RAW_HARDWARE = 1, 2, 4, 8, 16, 64
_TXTIME_DEADLINE_MODE, _TXTIME_REPORT_ERRORS = 1, 2
_BUFFER_BYTES: Final = 4 << 20
_ETHERTYPE: Final[int] = lib.QOS_PACKET_ETHERTYPE
_VLAN_ETHERTYPE: Final = 0x8100


@dataclass(frozen=True)
class Way:
    """How packets of a stream leave: the socket, the headers in front of each payload, the address to send to."""

    socket: socket.socket
    prefix: bytes
    address: bytes


def interface_of(talk: Talk) -> str:
    """The interface that packets leave through; empty where the kernel chooses it."""
    tagged = talk.vlan and not is_mac(talk.destination)
    return f"{talk.interface}.{talk.vlan}" if tagged else talk.interface


def open_talker(talk: Talk) -> Way:
    """Open a socket for a stream. Raises TrafficError."""
    with _explained(talk.interface, f"stream {talk.name}"):
        way = _open_ethernet(talk) if is_mac(talk.destination) else _open_udp(talk)
        try:
            _set_up_talker(way.socket, talk)
        except BaseException:
            way.socket.close()
            raise
        return way


def open_listener(listen: Listen) -> socket.socket:
    """Open a socket that gives payloads alone. Raises TrafficError."""
    if listen.ethernet:
        with _explained(listen.interface, "raw Ethernet"):
            # DGRAM: without the Ethernet header, or what is left of it without the tag.
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE))
            return _bound(opened, (listen.interface, _ETHERTYPE))
    address = listen.address or "::"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = f"port {listen.port}" if not listen.address else f"{listen.address} port {listen.port}"
    with _explained(listen.interface, where):
        try:
            opened = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT or listen.address:
                raise
            address, opened = "0.0.0.0", socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if opened.family == socket.AF_INET6 and not listen.address:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if listen.interface:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, listen.interface.encode() + b"\0")
        if listen.address and ipaddress.ip_address(address).is_multicast:
            _join(opened, address, listen.interface)
        place = (address, listen.port)
        return _bound(opened, (*place, 0, _scope(address, listen.interface)) if ":" in address else place)


def keeps_launch_times(interface: str) -> bool:
    """Whether an interface, or the one below it (VLAN), has the etf queueing discipline; without it launch times are
    ignored. True where that cannot be found out."""
    try:
        from pyroute2.iproute import IPRoute
    except ImportError:
        return True
    with _explained(interface, "launch times"), IPRoute() as route:
        below: int | None = socket.if_nametoindex(interface)
        while below:
            if any(qdisc.get_attr("TCA_KIND") == "etf" for qdisc in route.get_qdiscs(below)):
                return True
            (link,) = route.get_links(below)
            # that of a veth is its other end, which may be in another namespace
            kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
            below = link.get_attr("IFLA_LINK") if kind == "vlan" else None
    return False


def dropped(opened: socket.socket) -> int:
    """Datagrams that found the socket's buffer full (SO_MEMINFO, SK_MEMINFO_DROPS)."""
    counters = struct.unpack("=9I", opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
    return int(counters[8])


def _open_udp(talk: Talk) -> Way:
    address = ipaddress.ip_address(talk.destination)
    interface = interface_of(talk)
    if address.version == 4:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        where = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", talk.port, address.packed)
        opened.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        where = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16s", talk.port, 0, address.packed)
        where += struct.pack("=I", _scope(talk.destination, interface))
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    if interface:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    return Way(opened, b"", where)


def _open_ethernet(talk: Talk) -> Way:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # of no protocol: it receives nothing
    opened.bind((talk.interface, 0))
    source = opened.getsockname()[4]
    prefix = bytes.fromhex(talk.destination.replace(":", "")) + source
    if talk.vlan:  # IEEE 802.1Q, 9.6: PCP, DEI 0, VID
        prefix += struct.pack("!HH", _VLAN_ETHERTYPE, (talk.priority & 7) << 13 | talk.vlan)
    return Way(opened, prefix + struct.pack("!H", _ETHERTYPE), b"")


def _set_up_talker(opened: socket.socket, talk: Talk) -> None:
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, talk.priority)
    if talk.launch_time:
        flags = _TXTIME_DEADLINE_MODE * talk.deadline_mode | _TXTIME_REPORT_ERRORS * talk.report_errors
        opened.setsockopt(socket.SOL_SOCKET, _SO_TXTIME, struct.pack("=iI", time.CLOCK_TAI, flags))
    if talk.transmit_times:
        flags = _TX_HARDWARE | _TX_SOFTWARE | _SOFTWARE | _RAW_HARDWARE
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, flags)


def _bound(opened: socket.socket, address: tuple[object, ...]) -> socket.socket:
    """The socket at its address, with timestamps and a large buffer."""
    try:
        flags = _RX_HARDWARE | _RX_SOFTWARE | _SOFTWARE | _RAW_HARDWARE
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, flags)
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        opened.bind(address)
    except BaseException:
        opened.close()
        raise
    return opened


def _join(opened: socket.socket, group: str, interface: str) -> None:
    """Become a member of a multicast group, on the interface or on the one that the kernel takes (ip(7), ipv6(7))."""
    index = socket.if_nametoindex(interface) if interface else 0
    packed = ipaddress.ip_address(group).packed
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed + struct.pack("=4xi", index))
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + struct.pack("=I", index))


def _scope(address: str, interface: str) -> int:
    """The scope of a link-local or multicast address, which the interface says (RFC 4007)."""
    if ":" not in address or not interface:
        return 0
    where = ipaddress.IPv6Address(address)
    return socket.if_nametoindex(interface) if where.is_link_local or where.is_multicast else 0


_REMEDIES: Final = {
    errno.EPERM: "CAP_NET_ADMIN (launch times, priorities above 6) or CAP_NET_RAW (raw Ethernet) is missing: run as"
    " root, or give the unit AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
    errno.EACCES: "the address is one of broadcast or is forbidden here, accepted one of a host or of a group",
    errno.EADDRINUSE: "another program listens there, perhaps another tsn-listener: end it, or give another port",
    errno.EADDRNOTAVAIL: "the address is none of this host's: see ip address",
    errno.ENOPROTOOPT: "the kernel has no SO_TXTIME (Linux 4.19 has): leave out launch-time",
    errno.EAFNOSUPPORT: "the kernel has no such kind of address",
    errno.ENETDOWN: "the interface is down: ip link set INTERFACE up",
}


@contextlib.contextmanager
def _explained(interface: str, what: str) -> Iterator[None]:
    """Errors of the kernel with what to do about them."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO) or "no interface" in str(error):
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise TrafficError(f"{what}: no interface {interface!r}, accepted {names}") from error
        remedy = _REMEDIES.get(error.errno or 0)
        text = f"{what}: {error.strerror or error}"
        raise TrafficError(f"{text}: {remedy}" if remedy else text) from error
