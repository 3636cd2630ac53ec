# SPDX-License-Identifier: Apache-2.0
"""The sockets that the daemon makes: UDP for data, unix for clients."""

from __future__ import annotations

import errno
import os
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from libqos import paths
from libqos.errors import QosError
from selened.wire import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; the module socket lacks it
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 1000


class SocketError(QosError):
    """A socket that cannot be made; the text says what to do."""


def udp(ip: str, ports: Iterable[int], receive_bytes: int) -> tuple[socket.socket, int]:
    """A UDP socket on the first free port of `ports` (0: any), and how many bytes it can hold. Raises SocketError."""
    last: OSError | None = None
    for port in ports:
        sock = socket.socket(family_of(ip), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.bind((ip, port))
            return sock, set_receive_buffer(sock, receive_bytes)
        except OSError as failure:
            sock.close()
            last = failure
            if failure.errno != errno.EADDRINUSE:
                break
    raise _udp_failure(ip, last) from last


def family_of(ip: str) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _udp_failure(ip: str, failure: OSError | None) -> SocketError:
    if failure is None or failure.errno == errno.EADDRINUSE:
        return SocketError("all UDP ports are in use: choose another port, or widen direct_ports")
    if failure.errno == errno.EADDRNOTAVAIL:
        return SocketError(f"{ip} is no address of this host: set address to one that `ip address` shows")
    return SocketError(f"UDP socket on {ip}: {failure.strerror}")


def in_random_order(ports: range) -> list[int]:
    """The ports to try for a direct session; of the system's ephemeral ones when the range is empty.

    Never 0: a socket whose port the kernel chose loses it when a connection of it is undone, which clients do."""
    if not ports:
        try:
            low, high = map(int, _EPHEMERAL.read_text().split())
        except (OSError, ValueError):
            low, high = 32768, 60999
        ports = range(low, high + 1)
    return random.sample(ports, min(len(ports), _TRIES))


def set_receive_buffer(sock: socket.socket, wanted: int) -> int:
    """Ask for a receive buffer of `wanted` bytes, past the system's limit if we may. Gives what the kernel grants,
    in its own counting (twice the bytes asked for, since it books its overhead too: socket(7))."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def receive_buffer_warning(granted: int, wanted: int) -> str:
    """What to say when the kernel granted less than was wanted; '' when it did not."""
    if granted >= 2 * wanted:
        return ""
    return (
        f"receive buffers are {granted // 2} bytes instead of {wanted}: net.core.rmem_max is too small, so bursts of "
        f"best-effort traffic may be lost; run `sysctl -w net.core.rmem_max={wanted}`, or give selened CAP_NET_ADMIN"
    )


def listen(path: Path, mode: int) -> socket.socket:
    """A listening SEQPACKET socket. The caller holds the lock of `path`, so a socket file there is a dead daemon's and
    is replaced. Raises SocketError or SocketPathError."""
    paths.remove_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    mask = os.umask(0o777 & ~mode)  # nobody connects under another mode, not even for a moment
    try:
        sock.bind(os.fspath(path))
        sock.listen(128)
    except OSError as failure:
        sock.close()
        raise SocketError(f"{path}: cannot listen: {failure.strerror}") from failure
    finally:
        os.umask(mask)
    sock.setblocking(False)
    return sock


def local_address(sock: socket.socket) -> Address:
    """Where a UDP socket is bound."""
    ip, port = sock.getsockname()[:2]
    return Address(ip, port)
