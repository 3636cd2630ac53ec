# SPDX-License-Identifier: Apache-2.0
"""A client of `libqos.peerserver` that connects again by itself, and whose state can be watched.

After a failure it waits a random time up to a bound, which doubles from `first_s` to `most_s`: so a thousand clients do
not come back to a server at one moment. The bound begins anew once a connection has lasted longer than `most_s`.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from libqos.endpoint import parse, tls_context
from libqos.errors import QosError
from libqos.peer import Counters, Limits, Method, Peer, connect
from libqos.rpc import RpcError
from libqos.watched import Watched

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from libqos.endpoint import TlsFiles


@dataclass(frozen=True, slots=True)
class LinkState:
    """What is known of a link: whether it is connected, since when (Unix time), why it last failed or ended (empty:
    it never did), and the attempts and connections so far."""

    url: str
    connected: bool
    since_ns: int
    last_error: str = ""
    attempts: int = 0
    connections: int = 0


class Link:
    """A context manager: connects when it is entered, and again whenever the connection ends, until it is left.

    `ready` is called with each new peer before the link says that it is connected: to register, for instance. If it
    raises a QosError, the connection is closed and made again. Raises InputError for a URL or files that cannot be
    used."""

    def __init__(
        self,
        url: str,
        methods: Mapping[str, Method],
        *,
        tls: TlsFiles | None = None,
        limits: Limits | None = None,
        ready: Callable[[Peer], Awaitable[None]] | None = None,
        first_s: float = 0.25,
        most_s: float = 15.0,
    ) -> None:
        tls_context(parse(url), tls, server=False)
        self.state = Watched(LinkState(url, connected=False, since_ns=time.time_ns()))
        self.counters = Counters()
        self.peer: Peer | None = None  # while connected
        self._url = url
        self._methods, self._tls, self._limits, self._ready = methods, tls, limits, ready
        self._first_s, self._most_s = first_s, most_s
        self._task: asyncio.Task[None] | None = None

    async def call(self, method: str, params: Sequence[Any] = (), timeout: float | None = None) -> Any:
        """`Peer.call` of the connection that there is; RpcError("closed") without one."""
        return await self._connected().call(method, params, timeout)

    async def notify(self, method: str, params: Sequence[Any] = ()) -> None:
        """`Peer.notify` of the connection that there is; RpcError("closed") without one."""
        await self._connected().notify(method, params)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _connected(self) -> Peer:
        if self.peer is None:
            raise RpcError("closed", f"{self._url}: not connected: {self.state.value.last_error or 'not tried yet'}")
        return self.peer

    async def _run(self) -> None:
        bound = self._first_s
        while True:
            begin = asyncio.get_running_loop().time()
            self._set(attempts=self.state.value.attempts + 1)
            try:
                await self._once()
            except QosError as error:
                self._set(connected=False, last_error=str(error))
            if asyncio.get_running_loop().time() - begin > self._most_s:
                bound = self._first_s
            await asyncio.sleep(random.uniform(0, bound))
            bound = min(2 * bound, self._most_s)

    async def _once(self) -> None:
        """One connection, from its beginning to its end, which is a QosError."""
        peer = await connect(self._url, self._methods, tls=self._tls, limits=self._limits, counters=self.counters)
        async with peer:
            if self._ready is not None:
                await self._ready(peer)
            self.peer = peer
            self._set(connected=True, connections=self.state.value.connections + 1)
            try:
                closed = await peer.wait_closed()
            finally:
                self.peer = None
        raise RpcError("closed", closed.message)

    def _set(self, **changes: Any) -> None:
        state = self.state.value
        if changes.get("connected", state.connected) != state.connected:
            changes["since_ns"] = time.time_ns()
        self.state.value = replace(state, **changes)
