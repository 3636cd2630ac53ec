# SPDX-License-Identifier: Apache-2.0
"""The other hosts: telling each who listens here and who sends from here, and taking in the same from them.

Each daemon connects to each of its peers, configured or discovered, and announces on that connection; what peers
announce arrives on the connections that they make. What must hold: a connection that is lost does not interrupt
traffic (the peer's entries stay for five seconds, enough for its daemon to start again); a peer that is slow or hostile
is disconnected before it costs memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from libqos.errors import QosError
from selened.datapath import DatapathError
from selened.peerlink import DEAD_S, Link
from selened.peertable import (
    MAX_LINE_BYTES,
    Hello,
    PeerError,
    SinkUpdate,
    SourceUpdate,
    Table,
    decode,
    encode,
    parse_hello,
)

if TYPE_CHECKING:
    import ssl

    from selened.core import Core
    from selened.discovery import Discovery
    from selened.plans import Key
    from selened.settings import Peer
    from selened.wire import Address

log = logging.getLogger("selened.peers")

UNHEARD_S: Final = 1.5  # for a peer that has discovered us to be discovered by us
ACCEPT_S: Final = 0.2  # for clients to put a new remote source in force
_MAX_ANSWER_BYTES: Final = 256 << 10


class Remote:
    """What one peer tells us."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.table: Table | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.hold: asyncio.TimerHandle | None = None


class Peers:
    """All peers."""

    def __init__(self, core: Core, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None) -> None:
        self.core = core
        self.links: dict[Address, Link] = {}
        self.remotes: dict[Address, Remote] = {}
        self._client_tls = tls[0] if tls is not None else None
        self._server_tls = tls[1] if tls is not None else None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.discovery: Discovery | None = None
        self.configured: dict[Address, Peer] = {}
        self._discovered: dict[Address, Peer] = {}
        self._arranging = asyncio.Lock()
        self._arranged = asyncio.Event()  # set and replaced whenever peers come

    @property
    def hello(self) -> Hello:
        return Hello(self.core.host, self.core.address.port)

    @property
    def complete(self) -> bool:
        """Whether every peer has told all it has, and who is to be discovered has been."""
        if self.discovery is not None and not self.discovery.heard:
            return False
        return all(remote.table is not None and remote.table.complete for remote in self.remotes.values())

    # ---- Start, change, end ----

    async def start(self) -> None:
        """Listen for peers, and connect to them. Raises OSError."""
        address = self.core.address
        self._server = await asyncio.start_server(
            self._connected, address.ip, address.port, limit=MAX_LINE_BYTES, ssl=self._server_tls,
            ssl_handshake_timeout=DEAD_S if self._server_tls else None,
        )  # fmt: skip
        await self.configure(self.core.settings.peers)

    async def configure(self, peers: tuple[Peer, ...]) -> None:
        """Make these the configured peers."""
        self.configured = {peer.endpoint: peer for peer in peers}
        await self._arrange()

    async def discovered(self, peers: tuple[Peer, ...]) -> None:
        """Make these the discovered peers. One may be configured as well."""
        found = {peer.endpoint: peer for peer in peers}
        if found != self._discovered:
            self._discovered = found
            await self._arrange()

    async def _arrange(self) -> None:
        """What those announced who are no longer peers is forgotten."""
        async with self._arranging:
            wanted = self._discovered | self.configured
            for address in [item for item in self.links if item not in wanted]:
                await self.links.pop(address).close()
                remote = self.remotes.pop(address)
                writer, remote.writer = remote.writer, None
                if writer is not None:
                    writer.transport.abort()
                await self._withdraw(remote)
            for address, peer in wanted.items():
                if address not in self.links:
                    self.remotes[address] = Remote(peer)
                    self.links[address] = Link(self.core, address, lambda: self.hello, self._client_tls)
        self._arranged.set()
        self._arranged = asyncio.Event()

    def connected(self, address: Address) -> bool:
        """Whether there is a connection with this peer, in either direction."""
        link, remote = self.links.get(address), self.remotes.get(address)
        return (link is not None and link.connected) or (remote is not None and remote.writer is not None)

    async def restart(self) -> None:
        """A new datapath process: greet everybody anew, and say what there is when everybody is back."""
        for link in self.links.values():
            link.reconnect()
        if self.discovery is not None:
            self.discovery.changed()

    async def close(self) -> None:
        """Stop listening and disconnect."""
        if self._server is not None:
            self._server.close()
        for link in self.links.values():
            await link.close()
        for remote in self.remotes.values():
            if remote.hold is not None:
                remote.hold.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- Telling ----

    def announce(
        self, listens: dict[Key, tuple[Address, int] | None], sources: dict[int, tuple[Key, Address | None]]
    ) -> None:
        """Tell every connected peer what changed here."""
        if listens or sources:
            for link in self.links.values():
                link.announce(listens, sources)

    async def barrier(self, timeout: float) -> None:
        """Wait until every peer that is there has put in force what it was told, `timeout` seconds at most.

        One that has connected to us, and told us its sinks, may not have heard from us yet."""
        waits = [link.acknowledged() for address, link in self.links.items() if self._behind(address, link)]
        if waits:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.gather(*waits)
            except TimeoutError:
                slow = ", ".join(str(address) for address, link in self.links.items() if self._behind(address, link))
                self.core.notices.warn("slow_peers", f"{slow}: not acknowledged within {timeout:g} s, it follows later")

    def _behind(self, address: Address, link: Link) -> bool:
        return link.behind or (not link.connected and self.remotes[address].writer is not None)

    # ---- Being told ----

    def replay(self) -> None:
        """Tell a new router everything that peers have announced."""
        for remote in self.remotes.values():
            if remote.table is not None:
                table = remote.table
                self._update(
                    table.host,
                    list(table.sinks.items()),
                    [(key, source, address) for source, (key, address) in table.sources.items()],
                )

    def _update(self, host: int, sinks: list[SinkUpdate], sources: list[SourceUpdate]) -> None:
        router, core = self.core.router, self.core
        for key, listen in sinks:
            core.warn_of_collision(router.set_remote_sink(key, host, listen))
        for key, source, address in sources:
            core.warn_of_collision(router.set_remote_source(key, source, address))

    async def _settle(self) -> None:
        with contextlib.suppress(DatapathError):  # a new one is on its way, and will be told everything
            await self.core.settle()

    async def _withdraw(self, remote: Remote) -> None:
        """Forget what a peer has announced."""
        table, remote.table = remote.table, None
        if remote.hold is not None:
            remote.hold.cancel()
            remote.hold = None
        if table is not None:
            self._update(
                table.host,
                [(key, None) for key in table.sinks],
                [(key, source, None) for source, (key, _) in table.sources.items()],
            )
            await self._settle()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        name = writer.get_extra_info("peername")
        ip = str(name[0]) if name else "?"
        try:
            expected = self.discovery.settings.max_peers if self.discovery is not None else 0
            if len(self._tasks) > 4 * max(len(self.links), expected) + 8:
                raise PeerError("too many connections")
            await self._serve(reader, writer, ip)
        except (PeerError, asyncio.LimitOverrunError) as failure:
            self.core.notices.warn("refused_peers", f"{ip}: {failure}")
            with contextlib.suppress(OSError):
                writer.write(encode({"error": str(failure)}))
                writer.close()
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass  # it has gone, or we end
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ip: str) -> None:
        known = await self._known(ip)
        if not known:
            how = ", and not discovered" if self.discovery is not None else "; add it there if it should be"
            raise PeerError(f"refused: not one of [[peers]]{how}")
        async with asyncio.timeout(DEAD_S):
            hello = parse_hello(decode(await reader.readuntil(b"\n")))
        remote = next((item for item in known if item.peer.port == hello.port), None)
        if remote is None:
            ports = ", ".join(str(item.peer.port) for item in known)
            raise PeerError(f"refused: found port {hello.port}, accepted {ports} of [[peers]] with this address")
        await self._greet(remote, hello, writer)
        table = remote.table
        assert table is not None
        try:
            while remote.writer is writer:
                async with asyncio.timeout(DEAD_S):
                    line = await reader.readuntil(b"\n")
                if remote.writer is writer:  # else it is no longer a peer, or has connected anew
                    await self._take(table, decode(line), writer)
        finally:
            if remote.writer is writer:
                self._lost(remote)

    async def _known(self, ip: str) -> list[Remote]:
        """The peers with an address. One that has discovered us first is waited for."""
        may_come = self.discovery is not None and self.discovery.may_come(ip)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNHEARD_S if may_come else 0):
                while not any(remote.peer.address == ip for remote in self.remotes.values()):
                    await self._arranged.wait()
        return [remote for remote in self.remotes.values() if remote.peer.address == ip]

    async def _greet(self, remote: Remote, hello: Hello, writer: asyncio.StreamWriter) -> None:
        """Take over from an earlier connection of the same peer; a new datapath process makes a new table."""
        others = [item for item in self.remotes.values() if item is not remote and item.table is not None]
        if hello.host == self.core.host or any(item.table and item.table.host == hello.host for item in others):
            raise PeerError(f"refused: host id {hello.host:#x} is that of another daemon; is a peer configured twice?")
        if remote.hold is not None:
            remote.hold.cancel()
            remote.hold = None
        if remote.writer is not None:
            remote.writer.transport.abort()
        remote.writer = writer
        if remote.table is not None and remote.table.host != hello.host:
            log.info("peer %s: its datapath process is a new one", remote.peer.endpoint)
            await self._withdraw(remote)
        if remote.table is None:
            remote.table = Table(remote.peer.address, hello.host)
        remote.table.last = 0
        remote.table.complete = False
        writer.transport.set_write_buffer_limits(high=_MAX_ANSWER_BYTES)
        writer.write(encode(self.hello.message()))
        log.info("peer %s: it announces", remote.peer.endpoint)
        if (link := self.links.get(remote.peer.endpoint)) is not None:
            link.hurry()

    async def _take(self, table: Table, message: dict[str, object], writer: asyncio.StreamWriter) -> None:
        if writer.transport.get_write_buffer_size() > _MAX_ANSWER_BYTES:
            raise PeerError("it does not read its acknowledgements")
        if "ping" in message:
            ping = message["ping"]
            writer.write(encode({"pong": ping if type(ping) is int else 0}))
            return
        sinks, sources = table.apply(message)
        self._update(table.host, sinks, sources)
        number = table.last
        await self._settle()
        await self.core.accepted(ACCEPT_S)
        writer.write(encode({"ack": number}))

    def _lost(self, remote: Remote) -> None:
        remote.writer = None
        hold = self.core.settings.peer_hold_s
        log.warning("peer %s: the connection is lost; what it announced stays for %d s", remote.peer.endpoint, hold)
        loop = asyncio.get_running_loop()
        remote.hold = loop.call_later(hold, lambda: self._spawn(remote))

    def _spawn(self, remote: Remote) -> None:
        task = asyncio.create_task(self._expire(remote))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _expire(self, remote: Remote) -> None:
        remote.hold = None
        log.warning("peer %s: still away; what it announced is withdrawn", remote.peer.endpoint)
        try:
            await self._withdraw(remote)
        except QosError as failure:
            log.warning("peer %s: %s", remote.peer.endpoint, failure)
