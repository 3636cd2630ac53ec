# SPDX-License-Identifier: Apache-2.0
"""Judging what a client shows and asks: policies, network namespace, sockets, descriptors, user."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from libqos.policy import Acceleration, Delivery, Resources
from selened.mapping import StreamPolicy
from selened.sockets import family_of
from selened.wire import RefusedError

if TYPE_CHECKING:
    from selened.seqpacket import Descriptors


def policy_of(packet: Any) -> StreamPolicy:
    """The policies of a struct selene_stream_open. Raises RefusedError for a value that does not exist."""

    def choose(what: str, value: int, choices: tuple[Any, ...]) -> Any:
        if value >= len(choices):
            accepted = ", ".join(f"{number} ({name})" for number, name in enumerate(choices))
            raise RefusedError(errno.EINVAL, f"{what} {value}, accepted {accepted}")
        return choices[value]

    if packet.traffic_class > 7:
        raise RefusedError(errno.EINVAL, f"traffic class {packet.traffic_class}, accepted 0 to 7")
    return StreamPolicy(
        acceleration=choose("acceleration", packet.acceleration, (Acceleration.SLOW, Acceleration.FAST)),
        resources=choose("resources", packet.resources, (Resources.LOW, Resources.ANY)),
        delivery=choose("delivery", packet.delivery, (Delivery.BEST_EFFORT, Delivery.RELIABLE)),
        time_sensitive=packet.time_sensitive,
        traffic_class=packet.traffic_class,
        period_ns=packet.period_ns,
        offset_ns=packet.offset_ns,
    )


def same_network(fd: int) -> bool:
    """Whether `fd` is our own network namespace: one file of the kernel per namespace."""
    # The link, since stat() asks the file system, which may be a process of the client. No path is called net:[number].
    return os.readlink(f"/proc/self/fd/{fd}") == os.readlink("/proc/self/ns/net")


def check_udp(sock: socket.socket, ip: str) -> None:
    """The socket that a resuming client shows has to be one that we could have made. Raises RefusedError."""
    good = sock.family == family_of(ip) and sock.type == socket.SOCK_DGRAM and sock.getsockname()[0] == ip
    if not good or not sock.getsockname()[1]:
        raise RefusedError(errno.EINVAL, f"the socket of the session is no UDP socket on {ip}: open a new session")


_overflow_owners = iter(range(0xF0000000, 0xFFFFFFFF))


def owner_of(uid: int) -> int:
    """The user whose sessions share memory. Users that our user namespace does not know all show as the overflow user
    (user_namespaces(7)): each such session is a user of its own, since they may be strangers to each other."""
    try:
        with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
            overflow = int(file.read())
    except (OSError, ValueError):
        overflow = 65534
    return next(_overflow_owners) if uid == overflow else uid


def event_fd_of(descriptors: Descriptors) -> int:
    """The eventfd of a sink, ours from now on. Raises RefusedError: another kind of file could block its writers."""
    if not len(descriptors):
        raise RefusedError(errno.EBADF, "a sink comes with its eventfd, found none")
    if os.readlink(f"/proc/self/fd/{descriptors.peek(0)}") != "anon_inode:[eventfd]":
        raise RefusedError(errno.EBADF, "the descriptor of a sink is no eventfd")
    return descriptors.take(0)
