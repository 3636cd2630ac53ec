# SPDX-License-Identifier: Apache-2.0
"""Our connection to one peer, on which we announce what is here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from typing import TYPE_CHECKING, Any, Final

from selened.peertable import MAX_LINE_BYTES, Hello, PeerError, announcements, decode, encode, parse_hello

if TYPE_CHECKING:
    from collections.abc import Callable

    from selened.core import Core
    from selened.plans import Key
    from selened.wire import Address

log = logging.getLogger("selened.peers")

PING_S: Final = 1.0
DEAD_S: Final = 3.0
_BACKOFF_S: Final = (0.1, 5.0)
_MAX_UNSENT_BYTES: Final = 4 << 20


class Link:
    """Connects, announces, and connects again. Runs until `close`."""

    def __init__(self, core: Core, address: Address, hello: Callable[[], Hello], tls: ssl.SSLContext | None) -> None:
        self.core = core
        self.address = address
        self.state = "connecting"
        self.reason = ""  # it is not connected
        self.connected = False
        self.sent = 0
        self.acked = 0
        self._hello = hello
        self._tls = tls
        self._writer: asyncio.StreamWriter | None = None
        self._closing = False
        self._progress = asyncio.Event()  # set and replaced at each acknowledgement and at the end of the connection
        self._there = asyncio.Event()  # the peer has connected to us, so it can be connected to
        self._task = asyncio.create_task(self._run())

    @property
    def behind(self) -> bool:
        """Whether the peer is connected and has not acknowledged everything."""
        return self.connected and self.acked < self.sent

    async def acknowledged(self) -> None:
        """Wait until there is a connection, and what has been sent so far is acknowledged or the connection is lost."""
        while not self.connected:
            await self._progress.wait()
        number = self.sent
        while self.connected and self.acked < number:
            await self._progress.wait()

    def announce(
        self, listens: dict[Key, tuple[Address, int] | None], sources: dict[int, tuple[Key, Address | None]]
    ) -> None:
        """Tell the peer, if it is connected (else the snapshot will)."""
        if self.connected:
            for message in announcements(listens, sources):
                self._announce(message)

    def hurry(self) -> None:
        """The peer is there: try now if there is no connection."""
        self._there.set()

    def reconnect(self) -> None:
        """Drop the connection; a new one begins at once with a snapshot."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def close(self) -> None:
        """End it."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        await self.core.grace_over.wait()  # a snapshot before that would lack the sessions that are coming back
        delay = _BACKOFF_S[0]
        while not self._closing:
            try:
                await self._connect()
                reason = "it was closed"
            except PeerError as failure:
                reason = str(failure)
                self.core.notices.warn("refusing_peers", f"peer {self.address}: {failure}")
                self.reason = reason
            except asyncio.IncompleteReadError:
                reason = "it closed the connection"
            except TimeoutError:
                reason = f"no answer within {DEAD_S:g} s"
            except asyncio.LimitOverrunError:
                reason = "found a line that is too long"
            except ssl.SSLCertVerificationError as failure:
                reason = f"its certificate: {failure.verify_message}"
            except OSError as failure:
                reason = os.strerror(failure.errno) if failure.errno else str(failure)
            if self.state == "connected":
                log.warning("peer %s: the connection is lost: %s", self.address, reason)
                delay = _BACKOFF_S[0]
            elif reason != self.reason:
                log.info("peer %s: not reachable: %s; trying again", self.address, reason)
            self.state, self.reason = "connecting", reason
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._there.wait()
            self._there.clear()
            delay = min(2 * delay, _BACKOFF_S[1])

    async def _connect(self) -> None:
        async with asyncio.timeout(DEAD_S):
            reader, writer = await asyncio.open_connection(
                self.address.ip, self.address.port, limit=MAX_LINE_BYTES, ssl=self._tls,
                local_addr=(self.core.address.ip, 0),
            )  # fmt: skip
        self._writer = writer
        try:
            writer.write(encode(self._hello().message()))
            async with asyncio.timeout(DEAD_S):
                parse_hello(decode(await reader.readuntil(b"\n")))
            await self._snapshot()
            self.state, self.reason = "connected", ""
            log.info("peer %s: connected", self.address)
            pinging = asyncio.create_task(self._ping(writer))
            try:
                await self._read(reader)
            finally:
                pinging.cancel()
        finally:
            self._disconnected(writer)

    def _disconnected(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self._writer = None
        self.connected = False
        self._advance()

    async def _snapshot(self) -> None:
        # Under the lock: what is in force here is applied, so that peers never send before they are expected.
        async with self.core.lock:
            self.sent = self.acked = 0
            self.connected = True
            self._announce({"begin": True})
            listens: dict[Key, tuple[Address, int] | None] = {}
            sources: dict[int, tuple[Key, Address | None]] = {}
            for key, plan in self.core.router.resident():
                if plan.listen is not None:
                    listens[key] = plan.listen
                sources |= {source: (key, address) for source, address in plan.sources.items()}
            for message in announcements(listens, sources):
                self._announce(message)
            self._announce({"end": True})
        self._advance()

    def _announce(self, message: dict[str, Any]) -> None:
        if self._writer is None:
            return
        self.sent += 1
        self._writer.write(encode({"n": self.sent, **message}))
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            # It does not read. The next connection begins with a snapshot, so nothing has to be kept.
            self.core.notices.warn("slow_peers", f"peer {self.address}: does not read; disconnected")
            self._writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(DEAD_S):
                message = decode(await reader.readuntil(b"\n"))
            if "ack" in message:
                number = message["ack"]
                if type(number) is not int or not self.acked <= number <= self.sent:
                    raise PeerError(f"found the acknowledgement {str(number)[:24]}, accepted up to {self.sent}")
                self.acked = number
                self._advance()
            elif "error" in message:
                raise PeerError(f"it refuses: {str(message['error'])[:200]}")

    async def _ping(self, writer: asyncio.StreamWriter) -> None:
        number = 0
        while True:
            number += 1
            writer.write(encode({"ping": number}))
            await asyncio.sleep(PING_S)

    def _advance(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
