# SPDX-License-Identifier: Apache-2.0
"""What happens to interfaces: they come and go, get another name, lose and regain their carrier (rtnetlink(7)).

Thesis 4.2.2: the first of the three ways in which an agent finds a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from pyroute2.netlink.rtnl.marshal import MarshalRtnl

if TYPE_CHECKING:
    from collections.abc import Callable

Record = dict[str, Any]

_RTMGRP_LINK: Final = 1
_NLMSG_DONE: Final = 3
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_QUESTION: Final = struct.Struct("=IHHII16x")  # struct nlmsghdr, and an empty struct ifinfomsg
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 1 << 20
_DATAGRAM_BYTES: Final = 1 << 16
_IFF_UP: Final = 1


@dataclass(frozen=True, slots=True)
class Link:
    """What is watched of an interface."""

    name: str
    up: bool
    carrier: bool


def _link(message: Any) -> Link:
    return Link(
        message.get_attr("IFLA_IFNAME") or "?", bool(message["flags"] & _IFF_UP), bool(message.get_attr("IFLA_CARRIER"))
    )


class LinkWatch:
    """Calls `happened` with a record for each event, from the running loop; a context manager.

    The events: `added`, `removed`, `renamed` (with `was`), `down`, `up` (set by somebody), `carrier_lost`, `carrier`.
    When more came than the kernel could keep, all links are asked for anew: what is different then has happened."""

    def __init__(self, happened: Callable[[Record], None]) -> None:
        self._happened = happened
        self._marshal = MarshalRtnl()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.bind((0, _RTMGRP_LINK))
        self._socket.setblocking(False)
        self._sequence = 0
        self._answer: dict[int, Link] | None = None  # while a question is open: what has come of it
        self.links: dict[int, Link] | None = None  # by index; None before the first answer
        self.overruns = 0

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _ask(self) -> None:
        """Ask for all links, on the same socket: so the answer has its place among the events."""
        self._sequence += 1
        self._answer = {}
        self._socket.sendto(_QUESTION.pack(_QUESTION.size, _RTM_GETLINK, _REQUEST_DUMP, self._sequence, 0), (0, 0))

    def _read(self) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                self._ask()
                continue
            if sender[0] == 0:  # from the kernel
                for message in self._marshal.parse(data):
                    self._take(message)

    def _take(self, message: Any) -> None:
        header = message["header"]
        if header["type"] == _NLMSG_DONE and header["sequence_number"] == self._sequence:
            answer, self._answer = self._answer or {}, None
            self._compare(answer)
        if header["type"] not in (_RTM_NEWLINK, _RTM_DELLINK) or message["family"]:  # bridges tell of their ports too
            return
        index = message["index"]
        if self._answer is not None:
            if header["type"] == _RTM_DELLINK:
                self._answer.pop(index, None)
            else:
                self._answer[index] = _link(message)
        if header["sequence_number"] != self._sequence and self.links is not None:
            links = {other: link for other, link in self.links.items() if other != index}
            if header["type"] == _RTM_NEWLINK:
                links[index] = _link(message)
            self._compare(links)

    def _compare(self, links: dict[int, Link]) -> None:
        before, self.links = self.links, links
        if before is None:
            return
        for index in before.keys() - links.keys():
            self._tell("removed", before[index])
        for index, now in links.items():
            was = before.get(index)
            if was is None:
                self._tell("added", now)
                continue
            if was.name != now.name:
                self._tell("renamed", now, was=was.name)
            if was.up != now.up:
                self._tell("up" if now.up else "down", now)
            if was.carrier != now.carrier:
                self._tell("carrier" if now.carrier else "carrier_lost", now)

    def _tell(self, event: str, link: Link, **more: Any) -> None:
        self._happened({"kind": "link", "ts_ns": time.time_ns(), "event": event, "interface": link.name,
                        "up": link.up, "carrier": link.carrier, **more})  # fmt: skip
