# SPDX-License-Identifier: Apache-2.0
"""What an end device is to have for its streams: the file that `tsn-agent apply` takes, as tables.

Nothing here asks the kernel. `resources` turns the tables into what the agent compares and sets: a value for each key.
A key is a tuple: its kind first, then what names it among its kind.

    ("link", "eth0")                      {"mtu": 1500, "up": True}; only what the file says
    ("vlan", "eth0.10")                   {"interface": "eth0", "id": 10, "egress": [[3, 5]]}; others have PCP 0
    ("address", "eth0.10", "10.0.0.1/24") {}
    ("neighbour", "eth0.10", "10.0.0.2")  {"mac": "02:00:00:00:00:02"}
    ("route", "10.9.0.0/16", 0)           {"gateway": "10.0.0.2", "interface": "eth0.10", "source": None}
    ("taprio", "eth0")                    parameters of libqos.codec.rtnl.sched_taprio
    ("etf", "eth0", 1)                    parameters of libqos.codec.rtnl.sched_etf; 1: the transmit queue

A value is what JSON can hold, so that the journal gives back what it was given. None in it: whatever it is.

Sources: thesis 4.2.1 (what netlink configures), IEEE 802.1Q-2022 8.6.8.4 (gates), tc-taprio(8), tc-etf(8).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final

from libqos import config, tomlfile
from libqos.codec.rtnl.refusals import (
    CLOCK_TAI,
    MAX_CYCLE_NS,
    MAX_ENTRIES,
    MAX_INTERVAL_NS,
    MAX_SDU_BYTES,
    RefusedError,
    check_taprio,
)
from libqos.codec.rtnl.sched_taprio import FLAG_FULL_OFFLOAD, FLAG_TXTIME_ASSIST
from libqos.config import option, sections

Key = tuple[str | int, ...]
Value = dict[str, Any]
Resources = dict[Key, Value]

PRIORITIES: Final = 8  # PCP, 3 bits (IEEE 802.1Q 9.6)
MAX_CLASSES: Final = 8
OFFLOADS: Final = {"software": 0, "txtime-assist": FLAG_TXTIME_ASSIST, "full": FLAG_FULL_OFFLOAD}
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def _interface(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= 15 or value in (".", ".."):
        raise ValueError
    if any(letter in "/:" or letter.isspace() for letter in value):
        raise ValueError
    return value


def _address(value: object) -> str:
    if not isinstance(value, str) or "/" not in value:
        raise ValueError
    return str(ipaddress.ip_interface(value))


def _host(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return str(ipaddress.ip_address(value))


def _destination(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return "default" if value == "default" else str(ipaddress.ip_network(value))


def _mac(value: object) -> str:
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        raise ValueError
    return value.lower()


def _pair(mark: str, low: int, high: int) -> Any:
    def parse(value: object) -> tuple[int, int]:
        found = re.fullmatch(rf"([0-9]{{1,5}}){mark}([0-9]{{1,5}})", value) if isinstance(value, str) else None
        if found is None or not (low <= int(found[1]) <= high and 0 <= int(found[2]) <= high):
            raise ValueError
        return int(found[1]), int(found[2])

    return parse


_INTERFACE: Final[dict[str, Any]] = {
    "parse": _interface,
    "accepted": "the name of an interface, 1 to 15 bytes without / : and spaces",
}
_ADDRESSES: Final[dict[str, Any]] = {
    "parse": _address,
    "accepted": "addresses with prefix length, 192.0.2.1/24 or 2001:db8::1/64",
}
_HOST: Final[dict[str, Any]] = {"parse": _host, "accepted": "an IPv4 or IPv6 address"}


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network card, or whatever exists already."""

    name: str = option(**_INTERFACE, meaning="its name")
    mtu: int | None = option(None, minimum=68, maximum=65535, meaning="MTU in bytes; as it is")
    up: bool = option(True, meaning="whether it is to be up")
    addresses: tuple[str, ...] = option((), **_ADDRESSES, meaning="its addresses")


@dataclass(frozen=True, kw_only=True)
class Vlan:
    """A VLAN on top of an interface (IEEE 802.1Q)."""

    interface: str = option(**_INTERFACE, meaning="the interface below")
    id: int = option(minimum=1, maximum=4094, meaning="VLAN identifier")
    name: str = option("", meaning="name; by default INTERFACE.ID")
    mtu: int | None = option(None, minimum=68, maximum=65535, meaning="MTU in bytes; as it is")
    addresses: tuple[str, ...] = option((), **_ADDRESSES, meaning="its addresses")
    egress: tuple[tuple[int, int], ...] = option(
        tuple((priority, priority) for priority in range(PRIORITIES)),
        parse=_pair(":", 0, PRIORITIES - 1), accepted='priority:PCP, as in "3:5", each 0 to 7',
        meaning="PCP that frames of a socket priority (SO_PRIORITY) carry; by default the same number",
    )  # fmt: skip

    def __post_init__(self) -> None:
        try:
            _interface(self.label)
        except ValueError:
            raise ValueError(f"name: found {self.label!r}, accepted 1 to 15 bytes without / : and spaces") from None
        if len(dict(self.egress)) != len(self.egress):
            raise ValueError(f"egress: found a priority twice in {self.egress}, accepted each once")

    @property
    def label(self) -> str:
        return self.name or f"{self.interface}.{self.id}"


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route of the main table."""

    destination: str = option(parse=_destination, accepted="a network, 10.1.0.0/16 or 2001:db8:1::/48, or default",
                              meaning="where to")  # fmt: skip
    gateway: str | None = option(None, **_HOST, meaning="next hop; none: on the link")
    interface: str | None = option(None, **_INTERFACE, meaning="interface; by default that of the gateway")
    source: str | None = option(None, **_HOST, meaning="address that is preferred as source")
    metric: int = option(0, minimum=0, maximum=(1 << 31) - 1, meaning="metric: less is better")

    def __post_init__(self) -> None:
        if self.gateway is None and self.interface is None:
            raise ValueError("found neither gateway nor interface, accepted one of them, or both")
        versions = {ipaddress.ip_address(text).version for text in (self.gateway, self.source) if text}
        if self.destination != "default":
            versions.add(ipaddress.ip_network(self.destination).version)
        elif not versions:
            raise ValueError("destination: default needs a gateway; else write 0.0.0.0/0 or ::/0")
        if len(versions) > 1:
            raise ValueError("found IPv4 and IPv6 in one route, accepted one of them")

    @property
    def network(self) -> str:
        """The destination in numbers."""
        if self.destination != "default":
            return self.destination
        assert self.gateway is not None
        return "0.0.0.0/0" if ipaddress.ip_address(self.gateway).version == 4 else "::/0"


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A link-layer address that needs no asking: etf and closed gates hold up ARP and neighbour discovery."""

    interface: str = option(**_INTERFACE, meaning="on which interface")
    address: str = option(**_HOST, meaning="whose")
    mac: str = option(parse=_mac, accepted="a MAC address, 02:00:00:00:00:01", meaning="its link-layer address")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a gate control list (IEEE 802.1Q-2022 8.6.8.4.4)."""

    open: tuple[int, ...] = option(minimum=0, maximum=MAX_CLASSES - 1,
                                   meaning="traffic classes whose gates are open; [] none")  # fmt: skip
    interval_ns: int = option(minimum=1, maximum=MAX_INTERVAL_NS, meaning="for how long")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Launch times for a traffic class: etf below its gates."""

    traffic_class: int = option(minimum=0, maximum=MAX_CLASSES - 1, meaning="traffic class")
    delta_ns: int = option(200_000, minimum=0, maximum=(1 << 31) - 1,
                           meaning="how long before its launch time a frame is handed to the device")  # fmt: skip
    deadline: bool = option(False, meaning="the launch time is the latest instant, not the instant")
    offload: bool = option(False, meaning="the device waits for the instant, not the kernel")
    others: bool = option(False, meaning="take frames without launch time too, which etf drops otherwise")

    def parameters(self) -> Value:
        return {"clockid": CLOCK_TAI, "delta": self.delta_ns, "deadline_mode": self.deadline, "offload": self.offload,
                "skip_sock_check": self.others}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When which traffic class may send on an interface: taprio."""

    interface: str = option(**_INTERFACE, meaning="the interface; with VLANs the one below them")
    traffic_classes: int = option(minimum=1, maximum=MAX_CLASSES, meaning="how many; 0 is the lowest")
    pcp: tuple[int, ...] = option(
        minimum=0, maximum=MAX_CLASSES - 1,
        meaning="traffic class of each PCP (and socket priority) 0 to 7: eight numbers",
    )  # fmt: skip
    queues: tuple[tuple[int, int], ...] = option(
        (), parse=_pair("@", 1, 65535), accepted='count@offset, as in "1@0"',
        meaning="transmit queues of each traffic class; by default one each, in order",
    )  # fmt: skip
    base_time_ns: int = option(0, minimum=0, maximum=(1 << 63) - 1,
                               meaning="when a cycle begins, TAI; if past, those that follow from it")  # fmt: skip
    cycle_time_ns: int = option(0, minimum=0, maximum=MAX_CYCLE_NS, meaning="0: the sum of all intervals")
    cycle_time_extension_ns: int = option(
        0, minimum=0, maximum=MAX_CYCLE_NS, meaning="how much longer the last cycle before a new list may be"
    )
    offload: str = option("software", choices=tuple(OFFLOADS), meaning="who opens the gates: the kernel, the kernel "
                          "by launch times (the device must keep them), or the device")  # fmt: skip
    txtime_delay_ns: int = option(0, minimum=0, maximum=MAX_CYCLE_NS,
                                  meaning="with txtime-assist: longest time from the socket to the device")  # fmt: skip
    max_sdu_bytes: tuple[int, ...] = option((), minimum=0, maximum=MAX_SDU_BYTES,
                                            meaning="largest payload of each traffic class; 0 any")  # fmt: skip
    entries: tuple[Entry, ...] = sections(Entry, maximum=MAX_ENTRIES, meaning="the gate control list")
    launch: tuple[Launch, ...] = sections(Launch, maximum=MAX_CLASSES, meaning="a class with launch times")

    def __post_init__(self) -> None:
        if None in self.entries or None in self.launch:  # what is wrong there has been said
            return
        if len(self.pcp) != PRIORITIES:
            raise ValueError(f"pcp: found {len(self.pcp)} numbers, accepted {PRIORITIES}, one for each PCP")
        for index, entry in enumerate(self.entries):
            for of in entry.open:
                self._check_class(f"entries[{index}].open", of)
        if len(self.max_sdu_bytes) > self.traffic_classes:
            raise ValueError(f"max_sdu_bytes: found {len(self.max_sdu_bytes)}, accepted up to {self.traffic_classes}")
        classes = [item.traffic_class for item in self.launch]
        for index, of in enumerate(classes):
            self._check_class(f"launch[{index}].traffic_class", of)
            if of in classes[:index]:
                raise ValueError(f"launch[{index}].traffic_class: found {of} twice, accepted each class once")
        if self.offload == "full" and self.launch and not all(item.offload for item in self.launch):
            raise ValueError("launch: found offload = false below a schedule that the device keeps, accepted true")

    def _check_class(self, where: str, number: int) -> None:
        if number >= self.traffic_classes:
            most = self.traffic_classes - 1
            raise ValueError(f"{where}: found traffic class {number}, accepted 0 to {most} (traffic_classes)")

    def parameters(self) -> Value:
        """Of taprio, as libqos.codec.rtnl.sched_taprio takes them."""
        flags = OFFLOADS[self.offload]
        entries = [[0, sum(1 << of for of in set(entry.open)), entry.interval_ns] for entry in self.entries]
        value: Value = {
            "num_tc": self.traffic_classes,
            "map": [*self.pcp, *[0] * (16 - PRIORITIES)],
            "queues": [list(pair) for pair in self.queues] or [[1, number] for number in range(self.traffic_classes)],
            "sched_entries": entries,
            "base_time": self.base_time_ns,
            "cycle_time": self.cycle_time_ns or sum(entry[2] for entry in entries),
            "cycle_time_extension": self.cycle_time_extension_ns,
            "flags": flags,
            "max_sdu": [*self.max_sdu_bytes, *[0] * (self.traffic_classes - len(self.max_sdu_bytes))],
        }
        if flags != FLAG_FULL_OFFLOAD:
            value["clockid"] = CLOCK_TAI
        if flags == FLAG_TXTIME_ASSIST or self.txtime_delay_ns:
            value["txtime_delay"] = self.txtime_delay_ns
        return value


@dataclass(frozen=True, kw_only=True)
class Path:
    """A way that a stream can take."""

    interface: str = option(**_INTERFACE, meaning="the interface that its talker sends by; a VLAN's own")
    destination: str | None = option(None, **_HOST, meaning="address of its listener there; by default as it was")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A stream that is watched: on the talker's host its ways, on the listener's whom to tell."""

    name: str = option(meaning="as talker and listener call it")
    paths: tuple[Path, ...] = sections(Path, maximum=8, meaning="a way, the best first; the others are for faults")
    tell: str = option("", meaning="URL of the agent of the talker's host, which is told of what the listener misses")
    confirm_ms: int = option(200, minimum=1, maximum=60_000,
                             meaning="how long a new way may take to bring the stream back")  # fmt: skip
    hold_ms: int = option(1000, minimum=0, maximum=3_600_000,
                          meaning="how long it stays there before a further loss moves it again")  # fmt: skip

    def __post_init__(self) -> None:
        names = [path.interface for path in self.paths if path is not None]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"paths[{index}].interface: found {name} twice, accepted each once")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The whole file."""

    interfaces: tuple[Interface, ...] = sections(Interface, maximum=256, meaning="an interface that exists")
    vlans: tuple[Vlan, ...] = sections(Vlan, maximum=1024, meaning="a VLAN that the agent makes")
    routes: tuple[Route, ...] = sections(Route, maximum=1024, meaning="a route")
    neighbours: tuple[Neighbour, ...] = sections(Neighbour, maximum=4096, meaning="a neighbour")
    schedules: tuple[Schedule, ...] = sections(Schedule, maximum=256, meaning="a schedule")
    streams: tuple[Stream, ...] = sections(Stream, maximum=1024, meaning="a stream with stand-by ways")

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams if stream is not None]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"streams[{index}].name: found {name!r} twice, accepted each once")

    def resources(self) -> Resources:
        """All of it by key. Raises ConfigError for what is there twice and for schedules that cannot work."""
        result: Resources = {}
        problems: list[str] = []

        def add(key: Key, value: Value) -> None:
            if key in result:
                problems.append(f"{' '.join(map(str, key))}: found twice, accepted once")
            result[key] = value

        for interface in self.interfaces:
            add(("link", interface.name), {"up": interface.up, **({"mtu": interface.mtu} if interface.mtu else {})})
        for vlan in self.vlans:
            add(
                ("vlan", vlan.label),
                {
                    "interface": vlan.interface,
                    "id": vlan.id,
                    "egress": sorted([priority, pcp] for priority, pcp in vlan.egress if pcp),
                },
            )
            add(("link", vlan.label), {"up": True, **({"mtu": vlan.mtu} if vlan.mtu else {})})
        for name, addresses in [(item.name, item.addresses) for item in self.interfaces] + [
            (item.label, item.addresses) for item in self.vlans
        ]:
            for address in addresses:
                add(("address", name, address), {})
        for neighbour in self.neighbours:
            add(("neighbour", neighbour.interface, neighbour.address), {"mac": neighbour.mac})
        for route in self.routes:
            # Linux gives an IPv6 route without metric 1024 (IP6_RT_PRIO_USER)
            metric = route.metric or (1024 if ":" in route.network else 0)
            add(("route", route.network, metric),
                {"gateway": route.gateway, "interface": route.interface, "source": route.source})  # fmt: skip
        for schedule in self.schedules:
            parameters = schedule.parameters()
            try:
                check_taprio(parameters)
            except RefusedError as error:
                problems.append(f"{schedule.interface}: {error}")
                continue
            add(("taprio", schedule.interface), parameters)
            for launch in schedule.launch:
                count, offset = parameters["queues"][launch.traffic_class]
                for queue in range(offset, offset + count):
                    add(("etf", schedule.interface, queue), launch.parameters())
        if problems:
            raise config.ConfigError(problems)
        return result


def read(file: str) -> Wanted:
    """Read a file (`-` is stdin). Raises InputError with every problem found."""
    return of_document(tomlfile.read(file))


def of_document(document: tomlfile.Document) -> Wanted:
    """Check what was read already. Raises InputError with every problem found."""
    return config.load(Wanted, tool="tsn-agent", document=document, environ={})
