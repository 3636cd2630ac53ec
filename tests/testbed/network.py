# SPDX-License-Identifier: Apache-2.0
"""Hosts and switches out of network namespaces, veth pairs and bridges. Everything goes when the network is closed.

Names are as an engineer would draw them: hosts `talker`, `listener`, switches `s1`, `s2`; a port is an interface.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


def ip(*words: object) -> str:
    """`ip`, whose complaint is the error's text."""
    return _call(["ip", *map(str, words)])


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Port:
    """An interface of a host."""

    host: Host
    name: str

    def add(self, *addresses: str) -> Self:
        """Give it addresses with prefix length, and set it up. IPv6 ones are usable at once."""
        for address in addresses:
            flags = ["nodad"] if ":" in address else []
            self.host.ip("address", "add", address, "dev", self.name, *flags)
        self.up()
        return self

    def up(self) -> None:
        self.host.ip("link", "set", self.name, "up")

    def down(self) -> None:
        self.host.ip("link", "set", self.name, "down")

    def queueing(self, kind: str, handle: str | int = "100:", **parameters: Any) -> None:
        """Set a queueing discipline (`libqos.codec.rtnl`), the root's unless there is a `parent`."""
        from pyroute2 import IPRoute

        from libqos.codec.rtnl import register

        register()
        with IPRoute(netns=self.host.namespace, ext_ack=True) as route:
            route.tc("replace", kind, route.link_lookup(ifname=self.name)[0], handle, **parameters)

    def vlan(self, number: int, **egress: int) -> Port:
        """A VLAN on top of it, NAME.NUMBER; `egress`: p3=5 maps priority 3 to PCP 5."""
        name = f"{self.name}.{number}"
        maps = [f"{priority.removeprefix('p')}:{pcp}" for priority, pcp in egress.items()]
        self.host.ip(
            "link", "add", "link", self.name, "name", name, "type", "vlan", "id", number,
            *(["egress-qos-map", *maps] if maps else []),
        )  # fmt: skip
        return Port(self.host, name)


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace; a switch is one with a bridge `br0`."""

    namespace: str
    switch: bool = False
    vlans: tuple[int, ...] = ()  # of a switch: those that each of its ports takes tagged; without any it filters none

    def ip(self, *words: object) -> str:
        return ip("-n", self.namespace, *words)

    def words(self, *command: object) -> list[str]:
        """A command line that runs `command` there."""
        return ["ip", "netns", "exec", self.namespace, *map(str, command)]

    def run(self, *command: object) -> str:
        """Run it to its end, and give what it prints; RuntimeError with what it complains of."""
        return _call(self.words(*command))

    def start(self, *command: object, **how: Any) -> subprocess.Popen[str]:
        """Start it; `how` is Popen's. Whoever starts it ends it."""
        return subprocess.Popen(self.words(*command), text=True, **how)


class Network:
    """Makes hosts and joins them; a context manager."""

    def __init__(self) -> None:
        self._prefix = f"q{os.getpid()}-"
        self._hosts: list[Host] = []

    def host(self, name: str) -> Host:
        """A new host, whose loopback is up."""
        return self._add(Host(self._prefix + name))

    def switch(self, name: str, *vlans: int) -> Host:
        """A bridge; with `vlans` it filters, and every port is a trunk of these."""
        host = self._add(Host(self._prefix + name, switch=True, vlans=vlans))
        host.ip(
            *("link", "add", "br0", "type", "bridge", *(("vlan_filtering", 1) if vlans else ())),
            *("stp_state", 0, "forward_delay", 0, "mcast_snooping", 0),
        )
        host.ip("link", "set", "br0", "up")
        return host

    def link(
        self, one: Host, other: Host, names: tuple[str, str] = ("eth0", "eth0"), *, queues: int = 1
    ) -> tuple[Port, Port]:
        """Join two hosts by a veth pair with so many transmit queues on each side; at a switch it joins the bridge."""
        ip(
            *("link", "add", names[0], "netns", one.namespace, "numtxqueues", queues, "numrxqueues", 1),
            *("type", "veth", "peer", "name", names[1], "netns", other.namespace),
            *("numtxqueues", queues, "numrxqueues", 1),
        )
        ports = Port(one, names[0]), Port(other, names[1])
        for port in ports:
            if port.host.switch:
                port.host.ip("link", "set", port.name, "master", "br0")
            for vlan in port.host.vlans:
                port.host.run("bridge", "vlan", "add", "vid", vlan, "dev", port.name)
            port.up()
        return ports

    def _add(self, host: Host) -> Host:
        ip("netns", "add", host.namespace)
        self._hosts.append(host)
        host.ip("link", "set", "lo", "up")
        return host

    def close(self) -> None:
        while self._hosts:
            ip("netns", "del", self._hosts.pop().namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def netdevsim(number: int, *, ports: int = 1, queues: int = 4) -> list[str]:
    """Make a simulated network card with a PTP clock (kernel of the project's own); the names of its interfaces."""
    bus = Path("/sys/bus/netdevsim")
    (bus / "new_device").write_text(f"{number} {ports} {queues}")
    return sorted(path.name for path in (bus / f"devices/netdevsim{number}/net").iterdir())
