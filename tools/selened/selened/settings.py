# SPDX-License-Identifier: Apache-2.0
"""The configuration table of selened: defaults, ranges and meanings in one place."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from libqos.config import option, section, sections
from selened.plans import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES
from selened.wire import MAX_SESSIONS, Address

DEFAULT_PORT: Final = 7471
MAX_PEERS: Final = 64


def _ipv4(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    address = ipaddress.IPv4Address(value)
    if address.is_unspecified or address.is_multicast or value == "255.255.255.255":
        raise ValueError("peers send to this address, so it has to be one of this host")
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


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another host that runs selened."""

    address: str = option(parse=_ipv4, accepted="an IPv4 address", meaning="its address")
    port: int = option(DEFAULT_PORT, minimum=1, maximum=65535, meaning="its port (UDP for data, TCP for control)")

    @property
    def endpoint(self) -> Address:
        return Address(self.address, self.port)


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
        "127.0.0.1", parse=_ipv4, accepted="an IPv4 address of this host", meaning="address for data and for peers"
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
    fault: Fault = section(Fault, meaning="faults that are put on the network on purpose")  # noqa: RUF009
    tls: Tls = section(Tls, meaning="encryption between the daemons")  # noqa: RUF009
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
    "peer_hold_s",
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
        elif field.name in RELOADABLE:
            now.append(f"{field.name} {before} → {after}")
        elif dataclasses.is_dataclass(before):
            later.append(f"[{field.name}]")
        else:
            later.append(f"{field.name} {before} → {after}")
    return now, later
