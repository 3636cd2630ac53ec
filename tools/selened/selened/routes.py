# SPDX-License-Identifier: Apache-2.0
"""What has to be told to whom after something changed: state in, orders out, and nothing else.

`Router` holds who takes part in which channel. After each change, `changes()` compares the plans of the channels that
were touched with the plans in force and gives the difference, in the order in which it has to be applied: first what
lets datagrams in, then what sends them, then the announcement to other hosts, and what ends comes last. So a message is
never on its way to a place that does not expect it.

A source's epoch moves on when an existing destination gets another address: the two ways may overtake each other, and
the sink has to drain the old one first. A destination that only comes or goes needs none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from selened.plans import (
    DATAPATH,
    MAX_RELAYED_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    RELAYED_BYTES,
    Accept,
    DatapathAccept,
    DatapathRoute,
    Dest,
    Endpoint,
    Key,
    Members,
    Plan,
    Route,
    make_plan,
    receiver,
    window_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from selened.wire import Address

T = TypeVar("T")
EMPTY: Final = Plan()


@dataclass
class Changes:
    """Differences, field by field in the order in which they are applied."""

    datapath_accepts: dict[int, DatapathAccept] = field(default_factory=dict)
    edges: list[tuple[int, int]] = field(default_factory=list)
    accepts: dict[int, tuple[Accept, ...]] = field(default_factory=dict)
    datapath_routes: dict[int, tuple[Key, DatapathRoute]] = field(default_factory=dict)
    routes: dict[int, Route] = field(default_factory=dict)
    listens: dict[Key, tuple[Address, int] | None] = field(default_factory=dict)
    sources: dict[int, tuple[Key, Address | None]] = field(default_factory=dict)
    ended_edges: list[tuple[int, int]] = field(default_factory=list)
    ended_routes: list[tuple[int, int]] = field(default_factory=list)  # source, its session
    ended_accepts: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Router:
    """Who takes part in which channel on this host and its peers, and what is in force."""

    def __init__(self, datapath: Address, receive_bytes: int, window_limit: int = MAX_WINDOW_BYTES) -> None:
        self.datapath = datapath
        self.window_limit = window_limit
        self.members: dict[Key, Members] = {}
        self.endpoints: dict[int, tuple[Key, Endpoint]] = {}
        self.epochs: dict[int, int] = {}
        self.collisions = 0
        self._receive_bytes = {DATAPATH: receive_bytes}
        self._plans: dict[Key, Plan] = {}
        self._dirty: set[Key] = set()
        self._resumed: set[int] = set()  # endpoints whose client may still hold what an earlier daemon told it
        self._names: dict[tuple[int, int], set[str]] = {}
        self._arrivals: dict[Key, tuple[int, int]] = {}  # receiver, and how many remote sources send to it
        self._load: Counter[int] = Counter()  # remote sources per receiver
        self._windows: dict[int, int] = {}

    # ---- What happened ----

    def add_source(self, key: Key, endpoint: Endpoint, epoch: int = 0) -> str:
        """A local source. `epoch` is what a source that outlived the daemon had. Gives a warning, or ''."""
        warning = self._add(key, endpoint, resumed=epoch > 0)
        self.members[key].sources[endpoint.id] = endpoint
        # One further: what the source's destinations were is not known any more, so the way may have changed.
        self.epochs[endpoint.id] = epoch + 1
        return warning

    def add_sink(self, key: Key, endpoint: Endpoint, *, resumed: bool = False) -> str:
        """A local sink. Gives a warning, or ''."""
        warning = self._add(key, endpoint, resumed=resumed)
        self.members[key].sinks[endpoint.id] = endpoint
        return warning

    def _add(self, key: Key, endpoint: Endpoint, *, resumed: bool) -> str:
        if endpoint.session.address is not None:
            self._receive_bytes[endpoint.session.id] = endpoint.session.receive_bytes
        warning = self._touch(key)
        self.endpoints[endpoint.id] = (key, endpoint)
        if resumed:
            self._resumed.add(endpoint.id)
        return warning

    def remove(self, endpoint: int) -> None:
        """A local source or sink is gone."""
        key, _ = self.endpoints.pop(endpoint)
        self.members[key].sources.pop(endpoint, None)
        self.members[key].sinks.pop(endpoint, None)
        self.epochs.pop(endpoint, None)
        self._resumed.discard(endpoint)
        self._dirty.add(key)

    def remove_session(self, session: int) -> None:
        """A client is gone, with everything it had."""
        for endpoint in [item for item, (_, of) in self.endpoints.items() if of.session.id == session]:
            self.remove(endpoint)
        self._receive_bytes.pop(session, None)
        self._windows.pop(session, None)

    def set_remote_sink(self, key: Key, host: int, listen: tuple[Address, int] | None) -> str:
        """Another host listens at an address with a window, or no more. Gives a warning, or ''."""
        if listen is None:
            if (members := self.members.get(key)) and members.remote_sinks.pop(host, None):
                self._dirty.add(key)
            return ""
        warning = self._touch(key)
        self.members[key].remote_sinks[host] = Dest(host, *listen)
        return warning

    def set_remote_source(self, key: Key, source: int, address: Address | None) -> str:
        """A source on another host sends from an address, or no more. Gives a warning, or ''."""
        if address is None:
            if (members := self.members.get(key)) and members.remote_sources.pop(source, None):
                self._dirty.add(key)
            return ""
        warning = self._touch(key)
        self.members[key].remote_sources[source] = address
        return warning

    def _touch(self, key: Key) -> str:
        """Make a channel known. A channel number under two names is kept apart by the name, and worth a warning."""
        self._dirty.add(key)
        if key in self.members:
            return ""
        self.members[key] = Members()
        names = self._names.setdefault((key.stream, key.channel), set())
        other = next(iter(names), None)
        names.add(key.name)
        if other is None:
            return ""
        self.collisions += 1
        return (
            f"stream {key.stream}: channel {key.channel:#x} is used by two names, {other!r} and {key.name!r}; they are "
            "kept apart, each sink gets only its own name's messages"
        )

    # ---- What follows from it ----

    def resident(self) -> Iterable[tuple[Key, Plan]]:
        """Every channel with the plan in force."""
        return self._plans.items()

    def plan(self, key: Key) -> Plan:
        """The plan in force of a channel."""
        return self._plans.get(key, EMPTY)

    def window(self, receiving: int) -> int:
        """The credit of each remote source of a receiver (a session, or DATAPATH)."""
        return self._windows.get(receiving, MIN_WINDOW_BYTES)

    def route(self, source: int) -> Route:
        """What a source's client was told."""
        return self.plan(self.endpoints[source][0]).routes.get(source, Route())

    def edges_of(self, endpoint: int) -> list[tuple[int, int]]:
        """The edges of a local endpoint."""
        return [edge for edge in self.plan(self.endpoints[endpoint][0]).edges if endpoint in edge]

    def changes(self, *, only_edges: bool = False) -> Changes:
        """What is to be done so that the plans hold; they are taken to be in force afterwards.

        With `only_edges` (the grace after a restart, when not everybody is known again) shared memory is connected and
        everything else waits for a later call."""
        result = Changes()
        if only_edges:
            for key in self._dirty:
                self._connect(key, result)
            return result
        self._share_windows()
        dirty, self._dirty = self._dirty, set()
        for key in sorted(dirty):
            members = self.members.get(key)
            new = make_plan(members, self.datapath, self._windows) if members else EMPTY
            old = self._plans.get(key, EMPTY)
            self._compare(key, old, new, result)
            if members:
                self._plans[key] = new
            else:
                self._forget(key)
        return result

    def _connect(self, key: Key, result: Changes) -> None:
        members = self.members.get(key)
        if not members:
            return
        old = self._plans.get(key, EMPTY)
        edges = make_plan(members, self.datapath, self._windows).edges
        result.edges += sorted(edges - old.edges)
        self._plans[key] = Plan(
            old.edges | edges, old.routes, old.datapath_routes, old.accepts, old.datapath_accepts, old.listen,
            old.sources,
        )  # fmt: skip

    def _share_windows(self) -> None:
        """Divide each receiving socket among the remote sources that send to it; a new share touches its channels."""
        touched: set[int] = set()
        for key in self._dirty:
            members = self.members.get(key)
            arrives = receiver(members) if members else None
            new = (arrives, len(members.remote_sources)) if members and arrives is not None else None
            old = self._arrivals.pop(key, None)
            if old is not None:
                self._load[old[0]] -= old[1]
                touched.add(old[0])
            if new is not None:
                self._arrivals[key] = new
                self._load[new[0]] += new[1]
                touched.add(new[0])
        touched.add(DATAPATH)
        changed = set()
        for item in touched:
            room, limit = self._receive_bytes.get(item, 0), self.window_limit
            if item == DATAPATH:
                room, limit = min(room, 2 * RELAYED_BYTES), min(limit, MAX_RELAYED_WINDOW_BYTES)
            window = window_bytes(room, self._load[item], limit)
            if self._windows.get(item) != window:
                self._windows[item] = window
                changed.add(item)
        if changed:
            self._dirty |= {key for key, (arrives, _) in self._arrivals.items() if arrives in changed}

    def _compare(self, key: Key, old: Plan, new: Plan, result: Changes) -> None:
        result.problems += [f"{key}: {text}" for text in new.problems if text not in old.problems]
        _differ(old.datapath_accepts, new.datapath_accepts, result.datapath_accepts, result.ended_accepts)
        result.edges += sorted(new.edges - old.edges)
        result.ended_edges += sorted(old.edges - new.edges)
        for sink, entries in new.accepts.items():
            if entries != old.accepts.get(sink, ()) or sink in self._resumed:
                result.accepts[sink] = entries
        for source in new.sources:
            self._advance(source, old, new)
        routes: dict[int, DatapathRoute] = {}
        ended: list[int] = []
        _differ(old.datapath_routes, new.datapath_routes, routes, ended)
        result.ended_routes += [(source, old.datapath_routes[source].session) for source in ended]
        for source, route in new.routes.items():
            if source in self._resumed and source not in new.datapath_routes:
                # the datapath process may hold one
                result.ended_routes.append((source, self.endpoints[source][1].session.id))
            if route != old.routes.get(source, Route()) or source in self._resumed:
                result.routes[source] = route
        result.datapath_routes |= {source: (key, route) for source, route in routes.items()}
        self._resumed -= new.accepts.keys() | new.routes.keys()
        if new.listen != old.listen:
            result.listens[key] = new.listen
        for source in old.sources.keys() | new.sources.keys():
            if new.sources.get(source) != old.sources.get(source):
                result.sources[source] = (key, new.sources.get(source))

    def _advance(self, source: int, old: Plan, new: Plan) -> None:
        before = {dest.host: dest.address for dest in _dests(old, source)}
        if any(before.get(dest.host, dest.address) != dest.address for dest in _dests(new, source)):
            self.epochs[source] += 1

    def _forget(self, key: Key) -> None:
        self._plans.pop(key, None)
        if self.members.pop(key, None) is None:
            return
        names = self._names[(key.stream, key.channel)]
        names.discard(key.name)
        if not names:
            del self._names[(key.stream, key.channel)]


def _dests(plan: Plan, source: int) -> tuple[Dest, ...]:
    through = plan.datapath_routes.get(source)
    route = plan.routes.get(source)
    return (route.dests if route else ()) + (through.dests if through else ())


def _differ(old: Mapping[int, T], new: Mapping[int, T], changed: dict[int, T], ended: list[int]) -> None:
    changed.update({item: value for item, value in new.items() if old.get(item) != value})
    ended += [item for item in old if item not in new]
