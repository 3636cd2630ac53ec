# SPDX-License-Identifier: Apache-2.0
"""Who is called: listens at a URL, and makes a `libqos.peer.Peer` of each connection.

A connection counts from its first moment, so that who never ends a handshake cannot take more than others; one too many
is told so and closed. No connection can end the server or another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Self

from libqos.codec.msgpackrpc import Connection
from libqos.endpoint import Listeners, TlsFiles, address_text, parse, tls_context
from libqos.peer import CLOSE, RECEIVE_BYTES, Closed, Counters, Limits, Method, Peer, check_methods
from libqos.rpc import peer_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_ACCEPT_AGAIN_S = 0.2  # after a failure such as too many open files


class Server:
    """Made by `serve`; a context manager that closes it.

    `peers`: those that are connected; `counters`: of all that ever were; `addresses`: where it listens."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        limits: Limits,
        connected: Callable[[Peer], None] | None,
        disconnected: Callable[[Peer, Closed], None] | None,
    ) -> None:
        check_methods(methods)
        self.peers: set[Peer] = set()
        self.counters = Counters()
        self.addresses: list[str] = []
        self._methods, self._limits = methods, limits
        self._connected, self._disconnected = connected, disconnected
        self._context: ssl.SSLContext | None = None
        self._listeners = Listeners()
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()  # those whose handshake goes on too

    async def open(self, url: str, tls: TlsFiles | None, mode: int) -> None:
        """Listen; see `serve`."""
        endpoint = parse(url)
        self._context = tls_context(endpoint, tls, server=True)
        await self._listeners.open(endpoint, mode=mode)
        self.addresses = self._listeners.names()
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in self._listeners.sockets]

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        for task in [*self._accepting, *self._connections]:
            task.cancel()
        await asyncio.gather(*self._accepting, *self._connections, return_exceptions=True)
        self._listeners.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                self.counters.accept_failed += 1
                log.warning("%s: accept: %s", address_text(listener.getsockname()), error.strerror)
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            if len(self._connections) >= self._limits.connections:
                self._refuse(connection)
                continue
            self.counters.accepted += 1
            task = loop.create_task(self._serve(connection, address_text(address)))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    def _refuse(self, connection: socket.socket) -> None:
        self.counters.closed["busy"] += 1
        if self._context is None:
            why = f"there are {self._limits.connections} connections, and more are not accepted; try later"
            with contextlib.suppress(OSError):
                connection.send(Connection().notify(CLOSE, ["busy", why]))
        connection.close()

    async def _serve(self, connection: socket.socket, name: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(RECEIVE_BYTES, loop)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            async with asyncio.timeout(self._limits.connect_s):
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._context)
        except (OSError, TimeoutError) as error:
            self.counters.handshakes_failed += 1
            log.warning("%s: no connection: %s", name, error or f"not done after {self._limits.connect_s:g} s")
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        peer = Peer(reader, writer, self._methods, self._limits, self.counters, name)
        if connection.family == socket.AF_UNIX:
            peer.credentials = peer_of(transport.get_extra_info("socket"))
            peer.name = f"process {peer.credentials.pid}"
        self.peers.add(peer)
        try:
            if self._connected is not None:
                self._connected(peer)
            peer.start()
            await peer.wait_closed()
        finally:
            peer.close("closed", "the server ends")
            closed = await peer.wait_closed()
            self.peers.discard(peer)
            if self._disconnected is not None:
                self._disconnected(peer, closed)


async def serve(
    url: str,
    methods: Mapping[str, Method],
    *,
    tls: TlsFiles | None = None,
    limits: Limits | None = None,
    mode: int = 0o660,
    connected: Callable[[Peer], None] | None = None,
    disconnected: Callable[[Peer, Closed], None] | None = None,
) -> Server:
    """Listen at `url` (`libqos.endpoint`); `methods` are those that any peer may call.

    `mode`: of a unix socket. `connected` is called before anything of a peer is read, `disconnected` after its end.
    Raises InputError for a URL or files that cannot be used, EndpointError or LockError where it cannot be listened."""
    server = Server(methods, limits or Limits(), connected, disconnected)
    await server.open(url, tls, mode)
    return server
