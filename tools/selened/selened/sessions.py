# SPDX-License-Identifier: Apache-2.0
"""A client's connection: greeting, streams, sources and sinks.

What must hold: one request of a client is worked on at a time, and while it is, no further one is read (so a client
that asks faster than it is answered waits, and costs nothing); whatever it sends, the worst that happens is that it is
disconnected with a reason.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from libqos.rpc import peer_of
from selened import sockets, wire
from selened.checks import check_udp, event_fd_of, owner_of, policy_of, same_network
from selened.datapath import DatapathError
from selened.pages import SessionPage
from selened.plans import Endpoint, Key, Session
from selened.seqpacket import Connection, Descriptors
from selened.wire import Address, RefusedError, RubbishError, VersionError, lib

if TYPE_CHECKING:
    from selened.core import Core
    from selened.mapping import Decision

log = logging.getLogger("selened.sessions")

_HELLO_S: Final = 5.0
_ACKNOWLEDGED_S: Final = 0.5
_MAX_STREAMS: Final = 1024
_MAX_WAITING: Final = 64
_MAX_ACCEPTING: Final = 256
_MAX_DEPTH: Final = 16384
_MAX_EPOCH: Final = 0x7FFFFFFF  # there is room to count on
SOURCE: Final = 1  # kinds of C_CLOSE
SINK: Final = 2
STREAM: Final = 3


@dataclass
class Stream:
    """A set of quality requirements that a client opened."""

    stream: int
    decision: Decision


@dataclass
class LocalEndpoint:
    """A source or a sink of this client. `event_fd` wakes a sink."""

    kind: int
    index: int
    key: Key
    event_fd: int = -1


class Client:
    """One client process' session."""

    def __init__(self, core: Core, sock: socket.socket) -> None:
        self.core = core
        self.peer = peer_of(sock)
        self.id = 0
        self.token = 0
        self.pid = self.peer.pid
        self.program = "?"
        self.direct = False
        self.why = ""  # it is direct or relayed
        self.address: Address | None = None
        self.resumed = False
        self.restored = True  # it has said again all that it had before a restart of selened
        self.streams: dict[int, Stream] = {}
        self.endpoints: dict[int, LocalEndpoint] = {}
        self.page: SessionPage | None = None
        self.accepting: dict[int, asyncio.Future[None]] = {}
        self._last_accept = 0
        self._indices: set[int] = set()
        self._connection = Connection(sock)
        self._session = Session(0, 0, None)
        self._reason = ""

    @property
    def owner(self) -> int:
        """The user, as far as shared memory is concerned."""
        return self._session.owner

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid}, user {self.peer.uid})"

    def send(self, packet: bytes) -> None:
        """Send a packet; a client that does not read is cut off."""
        self._connection.send(packet)

    def close(self, reason: str) -> None:
        """End the session; the client is told nothing, it sees the end of the connection."""
        self._reason = self._reason or reason
        self._connection.close(reason)

    def event_fd(self, sink: int) -> int:
        """What wakes a sink; -1 when it is gone."""
        endpoint = self.endpoints.get(sink)
        return endpoint.event_fd if endpoint is not None else -1

    # ---- The life of a connection ----

    async def run(self) -> None:
        """Serve until the client or we end it. Raises nothing that a client could cause."""
        try:
            async with asyncio.timeout(_HELLO_S):
                data, descriptors = await self._connection.receive()
                with descriptors:
                    if not data:
                        return
                    await self._hello(data, descriptors)
            await self._serve()
        except RefusedError as refusal:
            self._refuse_connection("refused_sessions", refusal.error, str(refusal))
        except VersionError as other:
            self._refuse_connection("other_versions", errno.EPROTONOSUPPORT, str(other))
        except RubbishError as rubbish:
            self._refuse_connection("rubbish", errno.EPROTO, str(rubbish))
        except TimeoutError:
            self._refuse_connection("silent_clients", errno.ETIMEDOUT, f"no greeting within {_HELLO_S:g} s")
        except DatapathError:
            self._reason = "the datapath process ended; it is started again"
        except OSError as failure:
            self._reason = failure.strerror or str(failure)
        finally:
            await self._end()

    def _refuse_connection(self, kind: str, error: int, text: str) -> None:
        self.core.notices.warn(kind, f"{self}: {text}")
        self._reason = text
        self.send(wire.error(0, error, text))

    async def _end(self) -> None:
        reason = self._reason or self._connection.reason
        self._connection.close()
        if self.id:
            log.info("session %016x of %s ended%s", self.id, self, f": {reason}" if reason else "")
            if reason:
                self.core.notices.counts["sessions_cut_off"] += 1
            await self.core.end_session(self)
        for endpoint in self.endpoints.values():
            if endpoint.event_fd >= 0:
                os.close(endpoint.event_fd)
        self.endpoints.clear()
        if self.page is not None:
            self.page.close()
            self.page = None

    # ---- Greeting ----

    async def _hello(self, data: bytes, descriptors: Descriptors) -> None:
        head = wire.header(data)
        if head.type != lib.SELENE_C_HELLO:
            raise RubbishError(f"found a packet of type {head.type} first, accepted a greeting")
        hello = wire.parse("selene_hello", data)
        self.program = "".join(c if c.isprintable() else "?" for c in wire.text_of(hello.program)) or "?"
        self._check_limits()
        if hello.flags & wire.RESUME and await self._resume(head.request, hello, descriptors):
            return
        await self._open(head.request, bool(hello.flags & wire.RELAYED), descriptors)

    def _check_limits(self) -> None:
        settings, clients = self.core.settings, self.core.clients.values()
        if len(clients) >= settings.max_sessions:
            raise RefusedError(errno.EUSERS, f"{len(clients)} sessions are open: close one, or raise max_sessions")
        mine = sum(client.peer.uid == self.peer.uid for client in clients)
        if mine >= settings.max_sessions_per_user:
            raise RefusedError(
                errno.EUSERS, f"user {self.peer.uid} has {mine} sessions: close one, or raise max_sessions_per_user"
            )

    async def _open(self, request: int, relayed: bool, descriptors: Descriptors) -> None:
        self.token = secrets.randbits(64) | 1
        session = secrets.randbits(64) | 1
        udp, granted, self.why = self._direct_socket(relayed, descriptors)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            owner = owner_of(self.peer.uid)
            answer = await self.core.datapath.order(
                "selene_order", lib.SELENE_O_SESSION, [theirs.fileno()], session=session, id=self.token, uid=owner
            )
            self._take_page(answer)
            self.direct = udp is not None
            self.address = sockets.local_address(udp) if udp is not None else None
            self._register(session, owner, granted)
            fds = [ours.fileno()] + ([udp.fileno()] if udp is not None else [])
            self._welcome(request, 0, fds)
        finally:
            ours.close()
            theirs.close()
            if udp is not None:
                udp.close()
        log.info("session %016x of %s: %s: %s", self.id, self, "direct" if self.direct else "relayed", self.why)

    def _direct_socket(self, relayed: bool, descriptors: Descriptors) -> tuple[socket.socket | None, int, str]:
        """The UDP socket of a direct session and what it can hold; None and why not."""
        settings = self.core.settings
        if relayed:
            return None, 0, "the client asked for it"
        if settings.sessions == "relayed":
            return None, 0, "the configuration says sessions = relayed"
        if not len(descriptors):
            return None, 0, "the client did not show its network namespace"
        if not same_network(descriptors.peek(0)):
            return None, 0, "the client is in another network namespace, which the daemon's address does not belong to"
        ports = sockets.in_random_order(settings.port_range())
        try:
            udp, granted = sockets.udp(settings.address, ports, settings.receive_buffer_bytes)
        except sockets.SocketError as failure:
            self.core.notices.warn("no_direct_socket", f"{self}: relayed instead of direct: {failure}")
            return None, 0, f"no UDP socket: {failure}"
        return udp, granted, "kernel UDP in the daemon's network namespace"

    async def _resume(self, request: int, hello: Any, descriptors: Descriptors) -> bool:
        """Take a session over from an earlier selened; False when the datapath process does not know it."""
        datapath = self.core.datapath
        if not datapath.can_resume or not hello.session or hello.session in self.core.clients:
            return False
        udp = None
        if len(descriptors) > 1:
            udp = socket.socket(fileno=descriptors.peek(1))
            descriptors.take(1)
            try:
                check_udp(udp, self.core.settings.address)
                address, granted = sockets.local_address(udp), udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            finally:
                udp.close()
        owner = owner_of(self.peer.uid)
        try:
            answer = await datapath.order(
                "selene_order", lib.SELENE_O_SESSION, session=hello.session, id=hello.token, uid=owner,
                flags=wire.RESUME,
            )  # fmt: skip
        except RefusedError as refusal:
            log.info("%s: session %016x cannot go on (%s): a new one", self, hello.session, refusal)
            return False
        self._take_page(answer)
        self.token, self.resumed, self.restored = hello.token, True, False
        self.direct = udp is not None
        if udp is not None:
            self.address = address
        self.why = "as before the restart of selened"
        self._register(hello.session, owner, granted if udp is not None else 0)
        self._welcome(request, wire.RESUME, [])
        log.info("session %016x of %s goes on: %s", self.id, self, "direct" if self.direct else "relayed")
        return True

    def _take_page(self, answer: Descriptors) -> None:
        with answer:
            if len(answer):
                try:
                    self.page = SessionPage(answer.take(0))
                except (OSError, ValueError) as failure:
                    self.core.notices.warn("no_counters", f"{self}: no counters in reports: {failure}")

    def _register(self, session: int, owner: int, granted: int) -> None:
        self.id = session
        self._session = Session(session, owner, self.address, granted)
        self.core.clients[session] = self

    def _welcome(self, request: int, flags: int, fds: list[int]) -> None:
        flags |= wire.DIRECT if self.direct else wire.RELAYED
        packet = wire.build(
            "selene_welcome", lib.SELENE_S_WELCOME, request, flags=flags, host=self.core.host, session=self.id,
            token=self.token, address=wire.pack_address(self.address) if self.address else {},
            fault=self.core.settings.fault.text.encode(),
        )  # fmt: skip
        self._connection.send(packet, fds)

    # ---- Requests ----

    async def _serve(self) -> None:
        """Answer requests one after the other, until the client goes. Confirmations are taken in between: a request may
        be waiting for another host, which waits for its own client to confirm."""
        requests: asyncio.Queue[tuple[bytes, Descriptors] | None] = asyncio.Queue(_MAX_WAITING)
        worker = asyncio.create_task(self._answer(requests))
        reader = asyncio.create_task(self._read(requests))
        try:
            await asyncio.wait({worker, reader}, return_when=asyncio.FIRST_COMPLETED)
            if not worker.done():
                await requests.put(None)  # what it is at is not left half done
                await worker
            else:
                reader.cancel()
            worker.result()
            if not reader.cancelled() and reader.done():
                reader.result()
        finally:
            worker.cancel()
            reader.cancel()
            await asyncio.gather(worker, reader, return_exceptions=True)
            while not requests.empty():
                left = requests.get_nowait()
                if left is not None:
                    left[1].close()

    async def _read(self, requests: asyncio.Queue[tuple[bytes, Descriptors] | None]) -> None:
        while True:
            data, descriptors = await self._connection.receive()
            try:
                if not data:
                    return
                if len(data) >= wire.HEADER_BYTES and wire.header(data).type == lib.SELENE_C_ACCEPTED:
                    self._confirmed(data)
                else:
                    await requests.put((data, descriptors))
                    descriptors = Descriptors()  # whoever takes the request closes them
            finally:
                descriptors.close()

    async def _answer(self, requests: asyncio.Queue[tuple[bytes, Descriptors] | None]) -> None:
        while (item := await requests.get()) is not None:
            with item[1] as _:
                await self._request(item[0], item[1])

    def push_accept(self, sink: int, entries: list[dict[str, object]]) -> None:
        """Tell a sink its remote sources. `accepting` holds what is to be confirmed."""
        self._last_accept = self._last_accept % 0xFFFFFFFF + 1
        if len(self.accepting) >= _MAX_ACCEPTING:  # it does not confirm; nobody waits for it for long
            self.accepting.pop(next(iter(self.accepting)))
        self.accepting[self._last_accept] = asyncio.get_running_loop().create_future()
        self.send(
            wire.build(
                "selene_accept", lib.SELENE_S_ACCEPT, self._last_accept, sink=sink, count=len(entries), entries=entries
            )
        )

    def _confirmed(self, data: bytes) -> None:
        future = self.accepting.pop(wire.parse("selene_close", data).msg.request, None)
        if future is not None and not future.done():
            future.set_result(None)

    async def _request(self, data: bytes, descriptors: Descriptors) -> None:
        head = wire.header(data)
        try:
            if head.type == lib.SELENE_C_STREAM:
                answer = self._stream(head.request, data)
            elif head.type == lib.SELENE_C_SOURCE:
                answer = await self._endpoint(SOURCE, head.request, data, descriptors)
            elif head.type == lib.SELENE_C_SINK:
                answer = await self._endpoint(SINK, head.request, data, descriptors)
            elif head.type == lib.SELENE_C_CLOSE:
                answer = await self._close(head.request, data)
            elif head.type == lib.SELENE_C_RESTORED:
                self.restored = True
                return
            else:
                raise RubbishError(f"found a packet of type {head.type}, accepted a request")
        except RefusedError as refusal:
            self.core.notices.counts["refused_requests"] += 1
            log.info("%s: refused: %s", self, refusal)
            answer = wire.error(head.request, refusal.error, str(refusal))
        self.send(answer)

    def _stream(self, request: int, data: bytes) -> bytes:
        packet = wire.parse("selene_stream_open", data)
        if packet.handle in self.streams:
            raise RefusedError(errno.EEXIST, f"stream handle {packet.handle} is in use: close it first")
        if len(self.streams) >= _MAX_STREAMS:
            raise RefusedError(errno.EMFILE, f"the session has {_MAX_STREAMS} streams: close one")
        decision = self.core.decide(policy_of(packet))
        self.streams[packet.handle] = Stream(packet.stream, decision)
        log.info("stream %d of %s: %s: %s", packet.stream, self, decision.chosen.label, decision.reason)
        if decision.warning:
            self.core.notices.warn("downgraded_streams", f"stream {packet.stream} of {self}: {decision.warning}")
        return wire.build(
            "selene_stream_ok", lib.SELENE_S_STREAM, request, handle=packet.handle, technology=int(decision.chosen),
            warning=int(bool(decision.warning)), text=wire.cut(decision.warning or decision.reason),
        )  # fmt: skip

    async def _endpoint(self, kind: int, request: int, data: bytes, descriptors: Descriptors) -> bytes:
        packet = wire.parse("selene_endpoint_open", data, tail="name")
        key = self._key_of(packet)
        core = self.core
        # Whose the ids were is not known any more, but only who has been away can want one.
        known = not self.restored and packet.id >> 32 == core.host
        if known and packet.id in core.router.endpoints:
            raise RefusedError(errno.EEXIST, f"endpoint {packet.id:#x} is declared already")
        event_fd = event_fd_of(descriptors) if kind == SINK else -1
        kept = known or core.reclaim(packet.id, self.owner, kind, key)
        if not kept:
            self._indices.add(packet.index)
            try:
                await core.grace_over.wait()
            finally:
                self._indices.discard(packet.index)
        endpoint = packet.id if kept else core.new_id()
        self.endpoints[endpoint] = LocalEndpoint(kind, packet.index, key, event_fd)
        self._indices.add(packet.index)
        if kind == SINK:
            depth = packet.depth or core.settings.edge_depth
            warning = core.router.add_sink(key, Endpoint(endpoint, self._session, depth), resumed=known)
        else:
            epoch = max(1, packet.epoch & _MAX_EPOCH) if kept else 0
            warning = core.router.add_source(key, Endpoint(endpoint, self._session), epoch)
        core.warn_of_collision(warning)
        await core.settle()
        if (refusal := core.failed_edges.pop(endpoint, None)) is not None:
            await self._remove(endpoint)
            raise refusal
        if kind == SOURCE and kept and not known:
            await (
                core.grace_over.wait()
            )  # it waits for the answer, so that it does not send while its sinks are missing
        if core.peers is not None and core.grace_over.is_set():
            await core.peers.barrier(_ACKNOWLEDGED_S)
        return wire.build(
            "selene_endpoint_ok", lib.SELENE_S_ENDPOINT, request, id=endpoint, edges=core.edges_of(endpoint)
        )

    def _key_of(self, packet: Any) -> Key:
        """Check a request for an endpoint, and say which channel it is for. Raises RefusedError."""
        stream = self.streams.get(packet.handle)
        if stream is None:
            raise RefusedError(errno.ENOENT, f"no stream with handle {packet.handle}: open the stream first")
        if packet.index >= wire.MAX_ENDPOINTS or packet.index in self._indices:
            raise RefusedError(
                errno.EINVAL, f"counter index {packet.index}, accepted a free one below {wire.MAX_ENDPOINTS}"
            )
        mine = sum(len(client.endpoints) for client in self.core.clients.values() if client.peer.uid == self.peer.uid)
        if mine >= self.core.endpoints_per_user:  # a sink has a descriptor here
            raise RefusedError(errno.EDQUOT, f"user {self.peer.uid} has {mine} sources and sinks: close one")
        if packet.depth > _MAX_DEPTH:
            raise RefusedError(errno.EINVAL, f"depth {packet.depth}, accepted at most {_MAX_DEPTH} messages")
        return Key(stream.stream, packet.channel, wire.name_of(packet))

    async def _close(self, request: int, data: bytes) -> bytes:
        packet = wire.parse("selene_close", data)
        if packet.kind == STREAM:
            if self.streams.pop(packet.id, None) is None:
                raise RefusedError(errno.ENOENT, f"no stream with handle {packet.id}")
            return wire.ok(request)
        endpoint = self.endpoints.get(packet.id)
        if endpoint is None or endpoint.kind != packet.kind:
            raise RefusedError(errno.ENOENT, f"no source or sink {packet.id:#x} of kind {packet.kind} in this session")
        await self._remove(packet.id)
        return wire.ok(request)

    async def _remove(self, endpoint: int) -> None:
        gone = self.endpoints.pop(endpoint)
        self._indices.discard(gone.index)
        self.core.router.remove(endpoint)
        if gone.event_fd >= 0:
            os.close(gone.event_fd)
        await self.core.settle()
