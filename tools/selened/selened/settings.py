# SPDX-License-Identifier: Apache-2.0
"""The configuration table of selened: defaults, ranges and meanings in one place."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from libqos.config import option, section, sections
from libqos.policy import Acceleration, Resources
from selened import strategies
from selened.announcement import MAX_SITE_BYTES
from selened.mapping import StreamPolicy, Technology, default_order
from selened.plans import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES
from selened.wire import MAX_SESSIONS, Address

DEFAULT_PORT: Final = 7471
MAX_PEERS: Final = 64
_MAX_PLACES: Final = 16


def _ip(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    address = ipaddress.ip_address(value)
    if address.is_unspecified or address.is_multicast or value == "255.255.255.255":
        raise ValueError("peers send to this address, so it has to be one of this host")
    if address.version == 6 and (address.is_link_local or address.ipv4_mapped or address.scope_id):
        raise ValueError("one that means the same on every host: no link-local and no v4-mapped one")
    return str(address)


def _ports(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    if value:
        found = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", value)
        if found is None or not 0 < int(found[1]) <= int(found[2]) < 65536:
            raise ValueError
    return value


@dataclass(frozen=True, kw_only=True)
class Datapath:
    """How selened-dp runs. A change needs a restart of the datapath process."""

    scheduling: str = option("other", choices=("other", "fifo", "rr"), meaning="scheduling class of its data thread")
    priority: int = option(80, minimum=1, maximum=99, meaning="real-time priority under fifo and rr")
    affinity: int = option(-1, minimum=-1, maximum=1023, meaning="CPU of its data thread; -1 any")
    lock_memory: bool = option(False, meaning="keep its memory in RAM")
    spin_us: int = option(
        -1, minimum=-1, maximum=1_000_000,
        meaning="microseconds to spin before its data thread sleeps, while work comes that fast; "
        "-1: 50, or 0 under fifo and rr",
    )  # fmt: skip

    def arguments(self) -> list[str]:
        """The options of selened-dp."""
        result = ["--sched", self.scheduling]
        if self.scheduling != "other":
            result += ["--priority", str(self.priority)]
        if self.affinity >= 0:
            result += ["--cpu", str(self.affinity)]
        if self.lock_memory:
            result += ["--lock-memory"]
        if self.spin_us >= 0:
            result += ["--spin-us", str(self.spin_us)]
        return result


def _order(meaning: str, acceleration: Acceleration, resources: Resources = Resources.LOW) -> tuple[str, ...]:
    """An option of [mapping], by default the order of the default strategy."""
    default = default_order(StreamPolicy(acceleration=acceleration, resources=resources))
    labels = tuple(item.label for item in Technology)
    result: tuple[str, ...] = option(tuple(item.label for item in default), choices=labels, meaning=meaning)
    return result


def _strategy(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    if value and value not in (known := strategies.installed()):
        raise ValueError(f"installed are {', '.join(known) or 'none'}")
    return value


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """Which technologies a stream gets, best first; the first usable one wins."""

    slow: tuple[str, ...] = _order("for slow streams", Acceleration.SLOW)
    fast_low: tuple[str, ...] = _order("for fast streams with low resource use", Acceleration.FAST)
    fast_any: tuple[str, ...] = _order("for fast streams with any resource use", Acceleration.FAST, Resources.ANY)
    strategy: str = option(
        "", parse=_strategy, accepted="the name of an installed entry point in the group selene.mapping",
        meaning="Python function that is asked first; empty: none",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for key in ("slow", "fast_low", "fast_any"):
            order = getattr(self, key)
            if not order or len(set(order)) < len(order):
                raise ValueError(f"{key}: found {list(order)}, accepted one technology or more, each once")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another host that runs selened."""

    address: str = option(parse=_ip, accepted="an IP address", meaning="its address")
    port: int = option(DEFAULT_PORT, minimum=1, maximum=65535, meaning="its port (UDP for data, TCP for control)")

    @property
    def endpoint(self) -> Address:
        return Address(self.address, self.port)


def _group(value: object) -> str:
    if not isinstance(value, str) or "%" in value or not (address := ipaddress.ip_address(value)).is_multicast:
        raise ValueError
    return str(address)


def _network(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return str(ipaddress.ip_network(value))


def _site(value: object) -> str:
    if not isinstance(value, str) or len(value.encode()) > MAX_SITE_BYTES or not value.isprintable():
        raise ValueError
    return value


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """Finding peers by multicast."""

    enabled: bool = option(False, meaning="announce this host, and make peers of those that announce themselves")
    site: str = option(
        "", parse=_site, accepted=f"text of at most {MAX_SITE_BYTES} bytes",
        meaning="only hosts with the same one find each other",
    )  # fmt: skip
    groups: tuple[str, ...] = option(
        ("239.255.74.71", "ff12::8000:7471"), parse=_group, accepted="a multicast address",
        meaning="where to announce, each on every interface with addresses of its family",
    )  # fmt: skip
    port: int = option(DEFAULT_PORT + 1, minimum=1, maximum=65535, meaning="UDP port of announcements")
    interfaces: tuple[str, ...] = option((), meaning="where to announce; empty: the interface that has address")
    allow: tuple[str, ...] = option(
        (), parse=_network, accepted="a network such as 192.168.10.0/24",
        meaning="who can be a peer; empty: the networks of the interface where it was heard",
    )  # fmt: skip
    key_file: str = option("", meaning="file with a secret of at least 16 bytes that all hosts share; empty: none")
    interval_s: int = option(5, minimum=1, maximum=60, meaning="seconds between announcements")
    max_peers: int = option(MAX_PEERS, minimum=1, maximum=MAX_PEERS, meaning="most hosts that are discovered")

    def __post_init__(self) -> None:
        for key in ("groups", "interfaces"):
            if len(getattr(self, key)) > _MAX_PLACES:
                raise ValueError(f"{key}: found {len(getattr(self, key))}, accepted at most {_MAX_PLACES}")
        if self.enabled and not self.groups:
            raise ValueError("groups: found none, accepted one or more")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Mutual TLS between the daemons. All three files, or none."""

    certificate: str = option("", meaning="file with this host's certificate (PEM)")
    key: str = option("", meaning="file with its private key (PEM)")
    authority: str = option("", meaning="file with the authority that signed the peers' certificates (PEM)")

    def __post_init__(self) -> None:
        given = [name for name in ("certificate", "key", "authority") if getattr(self, name)]
        if given and len(given) < 3:
            raise ValueError(f"found {' and '.join(given)} only, accepted certificate, key and authority together")

    @property
    def enabled(self) -> bool:
        return bool(self.certificate)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A bad network on purpose, for tests. A change needs a restart of the datapath process, and of direct sessions."""

    loss: float = option(0.0, minimum=0, maximum=1, meaning="probability that a datagram is lost")
    duplicate: float = option(0.0, minimum=0, maximum=1, meaning="probability that it comes twice")
    reorder: float = option(0.0, minimum=0, maximum=1, meaning="probability that later ones overtake it")
    corrupt: float = option(0.0, minimum=0, maximum=1, meaning="probability that one of its bits is turned")
    delay_us: int = option(0, minimum=0, maximum=60_000_000, meaning="microseconds that each is under way longer")
    jitter_us: int = option(0, minimum=0, maximum=60_000_000, meaning="up to so many more, each another")
    hold_us: int = option(10_000, minimum=0, maximum=60_000_000, meaning="microseconds to wait for those that overtake")
    direction: str = option("both", choices=("tx", "rx", "both"), meaning="which datagrams of this host")
    seed: int = option(0, minimum=0, maximum=(1 << 63) - 1, meaning="the same seed has the same effect")

    @property
    def text(self) -> str:
        """As the C parts take it (libqos/core/datapath/fault.h); empty: no faults."""
        chances = [(name, getattr(self, name)) for name in ("loss", "duplicate", "reorder", "corrupt")]
        parts = [f"{name}={f'{value:.9f}'.rstrip('0').rstrip('.')}" for name, value in chances if value]
        parts += [
            f"{name}={value}us" for name, value in (("delay", self.delay_us), ("jitter", self.jitter_us)) if value
        ]
        rest = [f"hold={self.hold_us}us", f"seed={self.seed}", f"direction={self.direction}"]
        return ",".join(parts + rest) if parts else ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of selened."""

    address: str = option(
        "127.0.0.1", parse=_ip, accepted="an IP address of this host", meaning="address for data and for peers"
    )
    port: int = option(DEFAULT_PORT, minimum=1, maximum=65535, meaning="UDP port for data and TCP port for peers")
    socket: str = option("", meaning="control socket; empty: selened.sock in the runtime directory", short="-s")
    log_level: str = option("info", choices=("debug", "info", "warning", "error"), meaning="what is logged")
    max_sessions: int = option(64, minimum=1, maximum=MAX_SESSIONS, meaning="sessions at the same time")
    max_sessions_per_user: int = option(32, minimum=1, maximum=MAX_SESSIONS, meaning="sessions of one user")
    sessions: str = option(
        "auto", choices=("auto", "relayed"), meaning="auto: direct where possible; relayed: none direct"
    )
    direct_ports: str = option(
        "", parse=_ports, accepted="a range such as 50000-50999; empty: any", meaning="UDP ports of direct sessions"
    )
    receive_buffer_bytes: int = option(
        4 << 20, minimum=64 << 10, maximum=1 << 30, meaning="kernel receive buffer of each UDP socket"
    )
    edge_depth: int = option(1024, minimum=16, maximum=16384, meaning="messages that a local sink can be behind")
    window_bytes: int = option(
        MAX_WINDOW_BYTES, minimum=MIN_WINDOW_BYTES, maximum=1 << 30, meaning="most credit of one remote source"
    )
    peer_hold_s: int = option(
        5, minimum=0, maximum=3600, meaning="how long what a peer announced outlives the connection to it"
    )
    datapath: Datapath = section(Datapath, meaning="the datapath process")  # noqa: RUF009 - makes a field
    mapping: Mapping = section(Mapping, meaning="technologies of streams")  # noqa: RUF009
    fault: Fault = section(Fault, meaning="faults that are put on the network on purpose")  # noqa: RUF009
    tls: Tls = section(Tls, meaning="encryption between the daemons")  # noqa: RUF009
    discovery: Discovery = section(Discovery, meaning="finding peers by multicast")  # noqa: RUF009
    peers: tuple[Peer, ...] = sections(Peer, maximum=MAX_PEERS, meaning="another host")

    def __post_init__(self) -> None:
        if self.edge_depth & (self.edge_depth - 1):
            raise ValueError(f"edge_depth: found {self.edge_depth}, accepted a power of two")
        seen: set[Address] = set()
        for index, peer in enumerate(self.peers):
            if peer.endpoint == Address(self.address, self.port):
                raise ValueError(f"peers[{index}]: found {peer.endpoint}, which is this daemon itself; remove it")
            if peer.endpoint in seen:
                raise ValueError(f"peers[{index}]: found {peer.endpoint} twice, accepted once")
            if ipaddress.ip_address(peer.address).version != ipaddress.ip_address(self.address).version:
                raise ValueError(f"peers[{index}]: found {peer.address}, accepted one of the family of {self.address}")
            seen.add(peer.endpoint)

    def datapath_arguments(self) -> list[str]:
        """The options of selened-dp."""
        return self.datapath.arguments() + (["--fault", self.fault.text] if self.fault.text else [])

    def port_range(self) -> range:
        """The ports of direct sessions; empty: the kernel chooses."""
        low, _, high = self.direct_ports.partition("-")
        return range(int(low), int(high) + 1) if high else range(0)


# What a running daemon takes over at SIGHUP; everything else needs a restart.
RELOADABLE: Final = (
    "log_level", "peers", "max_sessions", "max_sessions_per_user", "sessions", "direct_ports", "edge_depth",
    "peer_hold_s", "mapping",
)  # fmt: skip


def differences(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """What changed, in words: what is taken over now, and what needs a restart."""
    now: list[str] = []
    later: list[str] = []
    for field in dataclasses.fields(Settings):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.name == "peers":
            gone = [f"-{peer.endpoint}" for peer in before if peer not in after]
            come = [f"+{peer.endpoint}" for peer in after if peer not in before]
            now.append(f"peers {' '.join(gone + come)}")
        else:
            text = f"[{field.name}]" if dataclasses.is_dataclass(before) else f"{field.name} {before} → {after}"
            (now if field.name in RELOADABLE else later).append(text)
    return now, later
