# SPDX-License-Identifier: Apache-2.0
"""Finding the other hosts of a link: announcing ourselves by multicast, and making peers of those who do the same.

In the habits of RFC 6762: a start that is spread at random, a second announcement after a second, one more whenever
something changed or somebody new is heard, a goodbye, and never more than two a second. What must hold: what strangers
send costs a bounded time and memory; a discovered peer is treated as a configured one from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import random
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from libqos.errors import QosError
from selened import multicast
from selened.announcement import MAX_BYTES, Announcement, AnnouncementError, decode, encode
from selened.neighbours import Neighbour, Neighbours, Where
from selened.settings import Peer

if TYPE_CHECKING:
    import socket

    from selened.core import Core
    from selened.peers import Peers
    from selened.wire import Address

log = logging.getLogger("selened.discovery")

_SPREAD_S: Final = (0.02, 0.12)  # RFC 6762, 6: so that hosts that were started together do not speak together
_GAP_S: Final = 0.5  # between two announcements
_SECOND_S: Final = 1.0
_TICK_S: Final = 1.0
_BUDGET: Final = 500  # datagrams a second that are looked at: 64 hosts at their fastest, in two groups, twice
_MIN_KEY_BYTES: Final = 16


class DiscoveryError(QosError):
    """Discovery cannot be started; the text says what to do."""


class Channel:
    """One group on one interface."""

    def __init__(self, interface: multicast.Interface, group: str) -> None:
        self.interface = interface
        self.group = group
        self.socket: socket.socket | None = None
        self.reason = ""  # it does not work


class Discovery:
    """Announces this daemon, and keeps the discovered part of `peers`."""

    def __init__(self, core: Core, peers: Peers) -> None:
        self.core = core
        self.peers = peers
        self.settings = core.settings.discovery
        self.channels: dict[tuple[multicast.Interface, str], Channel] = {}
        self.sent = 0
        self.neighbours = Neighbours(
            self._own, [ipaddress.ip_network(item) for item in self.settings.allow], self.settings.max_peers,
            core.notices.warn,
        )  # fmt: skip
        self._key = _read_key(self.settings.key_file)
        self._instance = secrets.randbits(64)
        self._sent_ns = 0
        self._wake = asyncio.Event()
        self._due = math.inf
        self._last = -math.inf
        self._again = True  # the announcement after the next comes soon
        self._look = False  # at the interfaces
        self._linked = True  # there is an interface to announce on
        self._window = (0.0, 0)  # second, and datagrams in it
        self._watch: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- Start, end ----

    def start(self) -> None:
        """Begin to announce and to listen. Raises DiscoveryError."""
        loop = asyncio.get_running_loop()
        try:
            self._watch = multicast.watch()
            loop.add_reader(self._watch.fileno(), self._interfaces_changed)
            self._open()
        except OSError as failure:
            raise DiscoveryError(f"[discovery]: interfaces cannot be listed: {failure.strerror}") from failure
        self._soon()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Say goodbye, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._announce(0)
        for channel in self.channels.values():
            self._close(channel)
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()

    def changed(self) -> None:
        """What we announce is another: say so."""
        self._soon()

    @property
    def heard(self) -> bool:
        """Whether everybody has had the time to answer our first announcement."""
        return self.sent > 1

    def may_come(self, ip: str) -> bool:
        """Whether this address may be that of a peer that we have not heard yet."""
        networks = [network for channel in self.channels.values() for network in channel.interface.networks]
        return self.neighbours.allows(ip, networks)

    # ---- The one task ----

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                due = loop.time() >= self._due
                if due:
                    self._due = loop.time() + _TICK_S  # should anything fail before the next is known
                if due or self._look:
                    self._look = False
                    self._open()
                if due:
                    pause = _SECOND_S if self._again else self.settings.interval_s * random.uniform(0.9, 1.1)
                    self._again, self._last = False, loop.time()
                    self._due = self._last + pause
                    self._announce(3 * self.settings.interval_s + 2)
                await self._arrange()
            except (QosError, OSError) as failure:
                self.core.notices.warn("failed_discovery", f"discovery: {failure}; trying again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(self._due - loop.time(), _TICK_S))):
                    await self._wake.wait()
            self._wake.clear()

    async def _arrange(self) -> None:
        """Make peers of those who are there, and no longer of those who are not."""
        for gone in self.neighbours.expire(asyncio.get_running_loop().time(), self.peers.connected):
            log.info("%s: no longer announced on %s", gone.address, gone.where.interface)
        found = tuple(Peer(address=item.address.ip, port=item.address.port) for item in self.neighbours.accepted)
        await self.peers.discovered(found)

    def _soon(self) -> None:
        earliest = max(asyncio.get_running_loop().time() + random.uniform(*_SPREAD_S), self._last + _GAP_S)
        self._due = min(self._due, earliest)
        self._wake.set()

    # ---- Interfaces ----

    def _interfaces_changed(self) -> None:
        assert self._watch is not None
        multicast.drain(self._watch)
        self._look = True
        if any(channel.reason for channel in self.channels.values()):  # it may be an address that can be used now
            self._soon()

    def _open(self) -> None:
        """A channel for each group on each interface that is up; those that failed are tried again."""
        found = multicast.interfaces(self.settings.interfaces, self.core.address.ip)
        if self._linked and not found:
            which = ", ".join(self.settings.interfaces) or f"the one with {self.core.address.ip}"
            log.warning("discovery: no interface to announce on (%s): none is up; waiting for it", which)
        self._linked = bool(found)
        wanted = {(interface, group) for interface in found for group in self.settings.groups}
        for place in self.channels.keys() - wanted:
            channel = self.channels.pop(place)
            self._close(channel)
            log.info("%s: left %s", channel.interface.name, channel.group)
        for place in sorted(wanted):
            channel = self.channels.setdefault(place, Channel(*place))
            if channel.socket is None:
                self._join(channel)

    def _join(self, channel: Channel) -> None:
        settings = self.settings
        try:
            channel.socket = multicast.join(channel.group, settings.port, channel.interface, self.core.address.ip)
        except OSError as failure:
            self._failed(channel, failure)
            return
        channel.reason = ""
        self._again = True
        self._soon()
        asyncio.get_running_loop().add_reader(channel.socket.fileno(), self._readable, channel)
        log.info("%s: announcing to %s port %d", channel.interface.name, channel.group, settings.port)

    def _failed(self, channel: Channel, failure: OSError) -> None:
        reason = failure.strerror or str(failure)
        if channel.reason != reason:
            log.info("%s: not announcing to %s: %s", channel.interface.name, channel.group, reason)
        channel.reason = reason

    def _close(self, channel: Channel) -> None:
        if channel.socket is not None:
            asyncio.get_running_loop().remove_reader(channel.socket.fileno())
            channel.socket.close()
            channel.socket = None

    # ---- Telling ----

    def _own(self) -> Announcement:
        core = self.core
        return Announcement(core.address, core.host, self._instance, 0, self._sent_ns, self.settings.site)

    def _announce(self, lifetime_s: int) -> None:
        self._sent_ns = max(self._sent_ns + 1, time.time_ns())
        own = self._own()
        data = encode(Announcement(own.address, own.host, own.instance, lifetime_s, own.sent_ns, own.site), self._key)
        for channel in self.channels.values():
            if channel.socket is not None:
                scope = (0, channel.interface.number) if ":" in channel.group else ()
                try:
                    channel.socket.sendto(data, (channel.group, self.settings.port, *scope))
                    channel.reason = ""
                except OSError as failure:  # an address that is still being probed, a full queue: the next one will do
                    self._failed(channel, failure)
        self.sent += 1

    # ---- Being told ----

    def _readable(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        while channel.socket is not None:
            second, count = self._window
            if loop.time() - second >= 1.0:
                second, count = loop.time(), 0
            if count >= _BUDGET:
                self._pause(channel, second + 1.0)
                return
            self._window = (second, count + 1)
            try:
                data, sender = channel.socket.recvfrom(MAX_BYTES + 1)
            except OSError:  # nothing left, or the interface has gone: the next announcement finds out
                return
            self._take(channel, data, str(sender[0]).partition("%")[0])

    def _pause(self, channel: Channel, until: float) -> None:
        """Leave the rest to the kernel, which drops what does not fit, until the second is over."""
        self.core.notices.warn("discovery_floods", f"{channel.interface.name}: over {_BUDGET} announcements a second")
        assert channel.socket is not None
        loop, sock = asyncio.get_running_loop(), channel.socket
        loop.remove_reader(sock.fileno())
        loop.call_at(until, self._resume, channel, sock)

    def _resume(self, channel: Channel, sock: socket.socket) -> None:
        if channel.socket is sock:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._readable, channel)

    def _take(self, channel: Channel, data: bytes, source: str) -> None:
        neighbours = self.neighbours
        try:
            said = decode(data, self._key)
        except AnnouncementError as failure:
            neighbours.counts[failure.counter] += 1
            if failure.counter != "rubbish":  # a neighbour that is set up otherwise: somebody will wonder
                self.core.notices.warn(f"discovery_{failure.counter}", f"{source}: {failure}")
            return
        where = Where(channel.interface.name, channel.group, source, channel.interface.networks)
        before = neighbours.entries.get(said.address)
        if neighbours.take(said, where, asyncio.get_running_loop().time(), time.time_ns()):
            if before is None:
                log.info("%s: announced on %s by %s", said.address, where.interface, source)
            self._again = True  # so that it hears us, even if one gets lost
            self._soon()

    def neighbour(self, address: Address) -> Neighbour | None:
        """What an address has announced."""
        return self.neighbours.entries.get(address)


def _read_key(path: str) -> bytes:
    """The shared secret; empty without a file. Raises DiscoveryError."""
    if not path:
        return b""
    try:
        key = Path(path).read_bytes().strip()
        mode = Path(path).stat().st_mode
    except OSError as failure:
        raise DiscoveryError(f"[discovery] key_file: {path}: {failure.strerror}") from failure
    if mode & stat.S_IRWXO:
        raise DiscoveryError(f"[discovery] key_file: {path} is open to everybody; chmod o= {path}")
    if len(key) < _MIN_KEY_BYTES:
        raise DiscoveryError(
            f"[discovery] key_file: found {len(key)} bytes in {path}, accepted at least {_MIN_KEY_BYTES}: "
            f"openssl rand -hex 32 > {path}"
        )
    return key
