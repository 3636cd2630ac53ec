# SPDX-License-Identifier: Apache-2.0
"""Applying what the router decides: to the datapath process, to the clients, to the peers, in that order.

What must hold: changes are applied one batch after the other (`lock`); nothing is announced to a peer before the local
side expects its datagrams. Nobody waits for another host while holding the lock, or two daemons could wait for each
other.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import secrets
from typing import TYPE_CHECKING, Any, Final

from libqos.errors import QosError
from selened import wire
from selened.datapath import Datapath, DatapathError
from selened.mapping import BUILT_IN, decide
from selened.notices import Notices
from selened.plans import DATAPATH, Accept, Dest, Key, Route
from selened.routes import Changes, Router
from selened.strategies import Strategies
from selened.wire import Address, RefusedError, lib

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from selened.mapping import Decision, StreamPolicy
    from selened.peers import Peers
    from selened.sessions import Client
    from selened.settings import Settings

log = logging.getLogger("selened")

GRACE_S: Final = 5.0
REUNION_S: Final = 2.0
_FORMER: Final = 65536
# What may be answered when the other side of an order is on its way out.
_GONE: Final = (errno.ENOENT, errno.ESRCH)


class Core:
    """Sessions, routes, and those who have to know of them."""

    def __init__(self, settings: Settings, datapath: Datapath, address: Address, receive_bytes: int) -> None:
        self.settings = settings
        self.datapath = datapath
        self.address = address
        self.receive_bytes = receive_bytes
        self.capabilities = BUILT_IN
        self.notices = Notices(log)
        self.strategies = Strategies(settings.mapping, self.notices)
        self.clients: dict[int, Client] = {}
        self.router = Router(address, receive_bytes, settings.window_bytes)
        self.endpoints_per_user = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self.lock = asyncio.Lock()
        self.grace_over = asyncio.Event()
        self.peers: Peers | None = None
        self.failed_edges: dict[int, RefusedError] = {}  # by endpoint, until its creator has looked
        self._edges: set[tuple[int, int]] = set()  # that the datapath process agreed to
        self._former: dict[int, tuple[object, ...]] = {}  # endpoints of a datapath process that died
        self._missing: set[int] = set()  # of the sinks among them, those that are not back
        self._last_id = 0

    @property
    def host(self) -> int:
        """The upper half of every id on this host."""
        return self.datapath.host

    def configure(self, settings: Settings) -> None:
        """Take a new configuration over; it decides about what is opened from now on."""
        self.settings = settings
        self.strategies = Strategies(settings.mapping, self.notices)

    def decide(self, policy: StreamPolicy) -> Decision:
        """The technology of a stream. Raises RefusedError."""
        return decide(policy, self.capabilities, self.strategies.order(policy, self.capabilities))

    def reset(self, datapath: Datapath, receive_bytes: int) -> None:
        """A new datapath process: nobody is connected, and only what peers told us is known."""
        self.datapath = datapath
        self.receive_bytes = receive_bytes
        self.router = Router(self.address, receive_bytes, self.settings.window_bytes)
        self.clients.clear()
        self.failed_edges.clear()
        self._edges.clear()
        if self.peers is not None:
            self.peers.replay()

    def new_id(self) -> int:
        """An id for a source or a sink. After an adopted start the numbers begin at a random place, and those that are
        in use are passed over: endpoints of sessions that have not come back yet are not known."""
        if not self._last_id and self.datapath.adopted:
            self._last_id = secrets.randbelow(1 << 31)
        while True:
            self._last_id = self._last_id % 0xFFFFFFFF + 1
            endpoint = self.host << 32 | self._last_id
            if endpoint not in self.router.endpoints and endpoint not in self._former:
                return endpoint

    def remember(self, *clients: Client) -> None:
        """The datapath process died: who comes back may have his ids again, so that what was lost is seen as a gap."""
        for client in clients:
            for endpoint, item in client.endpoints.items():
                self._former[endpoint] = (client.owner, item.kind, item.key)
                if item.event_fd >= 0:
                    self._missing.add(endpoint)
        for endpoint in list(self._former)[:-_FORMER]:
            del self._former[endpoint]
        self.grace_over.clear()

    def reclaim(self, endpoint: int, owner: int, kind: int, key: Key) -> bool:
        """Whether this endpoint was this user's; then it is his again."""
        if self._former.get(endpoint) != (owner, kind, key):
            return False
        del self._former[endpoint]
        self._missing.discard(endpoint)
        return True

    def edges_of(self, endpoint: int) -> int:
        """How many edges of an endpoint are in force."""
        return sum(edge in self._edges for edge in self.router.edges_of(endpoint))

    def warn_of_collision(self, warning: str) -> None:
        """Log what the router had to say about a new channel."""
        if warning:
            self.notices.warn("channel_collisions", warning)

    # ---- The grace after an adopted start ----

    async def grace(self) -> None:
        """Take nothing away until the sessions of the earlier daemon are back, for five seconds at most."""
        await self._wait(GRACE_S, self._complete)
        log.info("%d of %d sessions came back", len(self.clients), self.datapath.sessions)
        self.grace_over.set()
        await self.settle()

    async def reunite(self) -> None:
        """The same for the sinks that a datapath process took along when it died, for two seconds at most: until then
        sources that are back would send to nobody, and peers would let go."""
        await self._wait(REUNION_S, lambda: not self._missing)
        if self._missing:
            log.info("%d sinks did not come back", len(self._missing))
        self._missing.clear()
        self.grace_over.set()
        await self.settle()

    async def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline and not over():
            await asyncio.sleep(0.02)

    def _complete(self) -> bool:
        """Whether everybody is back, and has said again what he has."""
        back = sum(client.resumed and client.restored for client in self.clients.values())
        return back >= self.datapath.sessions and (self.peers is None or self.peers.complete)

    # ---- Applying changes ----

    async def settle(self) -> None:
        """Put what changed into force, except at the peers, who only have been told (`Peers.barrier`)."""
        async with self.lock:
            changes = self.router.changes(only_edges=not self.grace_over.is_set())
            if changes:
                await self._apply(changes)

    async def _apply(self, changes: Changes) -> None:
        datapath = self.datapath
        for text in changes.problems:
            self.notices.warn("limits", text)
        await self._order(
            [
                datapath.order(
                    "selene_order_accept", lib.SELENE_O_ACCEPT, source=source,
                    address=wire.pack_address(accept.address), sessions_count=len(accept.sessions),
                    sessions=accept.sessions,
                )
                for source, accept in changes.datapath_accepts.items()
            ],
            "accept",
        )  # fmt: skip
        await asyncio.gather(*(self._connect(edge) for edge in changes.edges))
        for sink, accepts in changes.accepts.items():
            self._push_accept(sink, accepts)
        await self._order(
            [
                datapath.order(
                    "selene_order_route", lib.SELENE_O_ROUTE, tolerate=_GONE, source=source, session=route.session,
                    stream=key.stream, channel=key.channel, epoch=self.router.epochs.get(source, 1),
                    dests_count=len(route.dests), dests=_pack_dests(route.dests),
                    sessions_count=len(route.sessions), sessions=route.sessions,
                )
                for source, (key, route) in changes.datapath_routes.items()
            ],
            "route",
        )  # fmt: skip
        for source, route in changes.routes.items():
            self._push_route(source, route)
        if self.peers is not None:
            self.peers.announce(changes.listens, changes.sources)
        await self._end(changes)

    async def _end(self, changes: Changes) -> None:
        datapath = self.datapath
        self._edges.difference_update(changes.ended_edges)
        orders: list[Awaitable[Any]] = [
            datapath.order("selene_order", lib.SELENE_O_EDGE_END, tolerate=_GONE, id=edge_id(edge))
            for edge in changes.ended_edges
        ]
        orders += [
            datapath.order("selene_order_route", lib.SELENE_O_ROUTE, tolerate=_GONE, source=source, session=session)
            for source, session in changes.ended_routes
        ]
        orders += [
            datapath.order("selene_order_accept", lib.SELENE_O_ACCEPT, tolerate=_GONE, source=source)
            for source in changes.ended_accepts
        ]
        await self._order(orders, "end")

    async def _order(self, orders: Iterable[Awaitable[Any]], what: str) -> None:
        """Give orders at once; refusals are counted and logged, a dead datapath process ends it."""
        for answer in await asyncio.gather(*orders, return_exceptions=True):
            if isinstance(answer, RefusedError):
                self.notices.warn("refused_orders", f"selened-dp refuses to {what}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answer.close()

    async def _connect(self, edge: tuple[int, int]) -> None:
        """Order one edge; what is refused is left for the endpoint's creator."""
        ends = [self.router.endpoints.get(end) for end in edge]
        if ends[0] is None or ends[1] is None:
            return
        source, sink = ends[0][1], ends[1][1]
        client = self.clients.get(sink.session.id)
        event_fd = client.event_fd(sink.id) if client is not None else -1
        if event_fd < 0:
            return
        try:
            answer = await self.datapath.order(
                "selene_order_edge", lib.SELENE_O_EDGE, [event_fd], edge=edge_id(edge), source=source.id,
                sink=sink.id, source_session=source.session.id, sink_session=sink.session.id,
                depth=sink.depth,
            )  # fmt: skip
            answer.close()
            self._edges.add(edge)
        except RefusedError as refusal:
            if refusal.error in _GONE:  # one of the two clients has just died
                return
            self.notices.warn("refused_orders", f"selened-dp refuses an edge: {refusal}")
            self.failed_edges[source.id] = self.failed_edges[sink.id] = refusal

    def _session_of(self, endpoint: int) -> int:
        entry = self.router.endpoints.get(endpoint)
        return entry[1].session.id if entry is not None else 0

    def _push_route(self, source: int, route: Route) -> None:
        client = self.clients.get(self._session_of(source))
        if client is not None:
            client.send(
                wire.build(
                    "selene_route", lib.SELENE_S_ROUTE, source=source, epoch=self.router.epochs[source],
                    flags=wire.RELAYED if route.relayed else 0, count=len(route.dests),
                    window=self.router.window(DATAPATH) if route.relayed else 0, dests=_pack_dests(route.dests),
                )
            )  # fmt: skip

    def _push_accept(self, sink: int, accepts: Sequence[Accept]) -> None:
        client = self.clients.get(self._session_of(sink))
        if client is not None:
            entries = [
                {
                    "source": item.source,
                    "address": wire.pack_address(item.address),
                    "flags": wire.RELAYED if item.relayed else 0,
                    "window": item.window,
                }
                for item in accepts
            ]
            client.push_accept(sink, entries)

    async def accepted(self, timeout: float) -> None:
        """Wait until the clients have put in force what they were told of remote sources, `timeout` seconds at most: a
        source must not send before."""
        waits = [future for client in self.clients.values() for future in client.accepting.values()]
        if waits:
            await asyncio.wait(waits, timeout=timeout)

    # ---- Sessions ----

    def session_gone(self, session: int, error: int, text: str) -> None:
        """The datapath process says that a session has ended."""
        client = self.clients.get(session)
        if client is not None:
            client.close(text or ("the session was cut off" if error else ""))
            return
        if error:  # it was quicker to go than we to hear of it
            self.notices.counts["sessions_cut_off"] += 1
        if not self.grace_over.is_set():
            self.datapath.sessions -= 1

    async def end_session(self, client: Client) -> None:
        """A client is gone: forget it everywhere."""
        if self.clients.get(client.id) is not client:
            return
        del self.clients[client.id]
        try:
            answer = await self.datapath.order(
                "selene_order", lib.SELENE_O_SESSION_END, tolerate=_GONE, session=client.id
            )
            answer.close()
        except DatapathError:
            self.remember(client)  # a new one is on its way; nobody is told until it is there
            return
        except QosError as failure:
            log.warning("session %016x: %s", client.id, failure)
        self.router.remove_session(client.id)
        try:
            await self.settle()
        except DatapathError:
            pass  # as above
        except QosError as failure:
            log.warning("%s", failure)


def edge_id(edge: tuple[int, int]) -> int:
    """The number of an edge: the same after a restart of the daemon, since both ends are of this host."""
    source, sink = edge
    return (source & 0xFFFFFFFF) << 32 | (sink & 0xFFFFFFFF)


def _pack_dests(dests: Sequence[Dest]) -> list[dict[str, object]]:
    return [{"address": wire.pack_address(dest.address), "window": dest.window} for dest in dests]
