# SPDX-License-Identifier: Apache-2.0
"""Where the messages of one channel go: a pure function from who takes part to a plan.

The rules (docs/selene.md shows them as a picture):
- sources and sinks of one user on this host meet through shared memory, an edge for each pair;
- sinks of another user get what the datapath process copies for them;
- a host announces one address per channel: that of the session if exactly one session has sinks and it is direct, else
  the datapath process';
- a direct session sends to the announced addresses by itself, a relayed one through the datapath process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from selened.wire import MAX_ACCEPT, MAX_DESTS, NOWHERE, Address

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where datagrams arrive: a session's own socket (its id), or that of the datapath process.
DATAPATH: Final = 0
MIN_WINDOW_BYTES: Final = 16 << 10
MAX_WINDOW_BYTES: Final = 1 << 20
# What is relayed waits in a client's receive ring of 2048 entries, and a datagram costs 848 bytes of credit at least.
RELAYED_BYTES: Final = 1 << 20  # of all sources together
MAX_RELAYED_WINDOW_BYTES: Final = 512 << 10


class Key(NamedTuple):
    """What sources and sinks have in common when they meet."""

    stream: int
    channel: int
    name: str

    def __str__(self) -> str:
        return f"stream {self.stream} channel {self.channel:#x}" + (f" {self.name!r}" if self.name else "")


class Session(NamedTuple):
    """A client as far as routes are concerned. `owner` stands for the user: equal owners share memory."""

    id: int
    owner: int
    address: Address | None  # of its UDP socket if it is direct
    receive_bytes: int = 0  # what its UDP socket can hold

    @property
    def direct(self) -> bool:
        return self.address is not None


class Endpoint(NamedTuple):
    """A source or a sink of a local session. `depth` is a sink's."""

    id: int
    session: Session
    depth: int = 0


class Dest(NamedTuple):
    """A host where somebody listens."""

    host: int
    address: Address
    window: int


class Route(NamedTuple):
    """What a source's client is told. Relayed: hand datagrams to the datapath process."""

    dests: tuple[Dest, ...] = ()
    relayed: bool = False


class DatapathRoute(NamedTuple):
    """What the datapath process is told about a source of a local session."""

    session: int
    dests: tuple[Dest, ...]
    sessions: tuple[int, ...]


class Accept(NamedTuple):
    """A source that a sink takes datagrams from."""

    source: int
    address: Address
    relayed: bool
    window: int


class DatapathAccept(NamedTuple):
    """A source that the datapath process takes datagrams from, and the sessions they go to."""

    address: Address
    sessions: tuple[int, ...]


@dataclass
class Members:
    """Who takes part in a channel: local endpoints by id, remote sinks by host, remote sources by id."""

    sources: dict[int, Endpoint] = field(default_factory=dict)
    sinks: dict[int, Endpoint] = field(default_factory=dict)
    remote_sinks: dict[int, Dest] = field(default_factory=dict)
    remote_sources: dict[int, Address] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sources or self.sinks or self.remote_sinks or self.remote_sources)


@dataclass(frozen=True)
class Plan:
    """Everything that has to be in force for one channel."""

    edges: frozenset[tuple[int, int]] = frozenset()
    routes: Mapping[int, Route] = field(default_factory=dict)  # by source
    datapath_routes: Mapping[int, DatapathRoute] = field(default_factory=dict)  # by source
    accepts: Mapping[int, tuple[Accept, ...]] = field(default_factory=dict)  # by sink
    datapath_accepts: Mapping[int, DatapathAccept] = field(default_factory=dict)  # by source
    listen: tuple[Address, int] | None = None  # announced to peers: address and window
    sources: Mapping[int, Address] = field(default_factory=dict)  # announced to peers
    problems: tuple[str, ...] = ()  # what had to be left out


def window_bytes(receive_bytes: int, sources: int, limit: int = MAX_WINDOW_BYTES) -> int:
    """Credit for each of `sources` remote sources that share a socket which can hold `receive_bytes`.

    The number of sources is rounded up to a power of two, so that windows change seldom while sources come and go."""
    shares = 1 << max(0, sources - 1).bit_length()
    return max(MIN_WINDOW_BYTES, min(limit, receive_bytes // 2 // shares))


def receiver(members: Members) -> int | None:
    """Where datagrams from other hosts arrive: a session id, DATAPATH, or None when nobody listens."""
    sessions = {sink.session.id: sink.session for sink in members.sinks.values()}
    if not sessions:
        return None
    only = next(iter(sessions.values()))
    return only.id if len(sessions) == 1 and only.direct else DATAPATH


def make_plan(members: Members, datapath: Address, windows: Mapping[int, int]) -> Plan:
    """The plan of one channel. `datapath` is the address of the datapath process, `windows` the credit per receiver."""
    problems: list[str] = []
    edges = frozenset(
        (source.id, sink.id)
        for source in members.sources.values()
        for sink in members.sinks.values()
        if source.session.owner == sink.session.owner
    )
    routes, datapath_routes = _routes(members, problems)
    listen, accepts, datapath_accepts = _accepts(members, datapath, windows, problems)
    announced = {source.id: source.session.address or datapath for source in members.sources.values()}
    return Plan(
        edges, routes, datapath_routes, accepts, datapath_accepts, listen, announced, tuple(dict.fromkeys(problems))
    )


def _routes(members: Members, problems: list[str]) -> tuple[dict[int, Route], dict[int, DatapathRoute]]:
    dests = tuple(sorted(members.remote_sinks.values()))
    if len(dests) > MAX_DESTS:
        problems.append(f"{len(dests)} hosts listen, accepted {MAX_DESTS}: the others get nothing")
        dests = dests[:MAX_DESTS]
    routes: dict[int, Route] = {}
    relayed: dict[int, DatapathRoute] = {}
    for source in members.sources.values():
        strangers = _strangers(source.session, members, problems)
        direct = source.session.direct
        through = DatapathRoute(source.session.id, () if direct else dests, strangers)
        if through.dests or through.sessions:
            relayed[source.id] = through
        routes[source.id] = Route(dests if direct else (), source.id in relayed)
    return routes, relayed


def _strangers(session: Session, members: Members, problems: list[str]) -> tuple[int, ...]:
    """Local sessions of other users that listen."""
    found = sorted({sink.session.id for sink in members.sinks.values() if sink.session.owner != session.owner})
    return _bounded(found, problems)


def _bounded(sessions: list[int], problems: list[str]) -> tuple[int, ...]:
    if len(sessions) > MAX_DESTS:
        problems.append(f"{len(sessions)} sessions listen, accepted {MAX_DESTS} through the datapath process")
    return tuple(sessions[:MAX_DESTS])


def _accepts(
    members: Members, datapath: Address, windows: Mapping[int, int], problems: list[str]
) -> tuple[tuple[Address, int] | None, dict[int, tuple[Accept, ...]], dict[int, DatapathAccept]]:
    arrives = receiver(members)
    if arrives is None:
        return None, {}, {}
    window = windows.get(arrives, MIN_WINDOW_BYTES)
    first = next(iter(members.sinks.values())).session
    listen = (first.address if arrives != DATAPATH and first.address else datapath, window)
    remote = [
        Accept(source, address, arrives == DATAPATH, window)
        for source, address in sorted(members.remote_sources.items())
    ]
    through: dict[int, DatapathAccept] = {}
    if arrives == DATAPATH:
        listeners = _bounded(sorted({sink.session.id for sink in members.sinks.values()}), problems)
        through = {item.source: DatapathAccept(item.address, listeners) for item in remote}
    for source in members.sources.values():
        strangers = _strangers(source.session, members, problems)
        if strangers:
            through[source.id] = DatapathAccept(NOWHERE, strangers)
    accepts: dict[int, tuple[Accept, ...]] = {}
    for sink in members.sinks.values():
        local = [
            Accept(source.id, NOWHERE, True, windows.get(DATAPATH, MIN_WINDOW_BYTES))
            for source in members.sources.values()
            if source.session.owner != sink.session.owner
        ]
        entries = sorted(local + remote)
        if len(entries) > MAX_ACCEPT:
            problems.append(f"{len(entries)} sources send to one sink, accepted {MAX_ACCEPT}: the others are refused")
        accepts[sink.id] = tuple(entries[:MAX_ACCEPT])
    return listen, accepts, through
