# SPDX-License-Identifier: Apache-2.0
"""What daemons tell each other: the messages, and the table of what one peer has said. No socket here.

JSON Lines over TCP. The side that connects announces, the other acknowledges::

    → {"hello":{"version":1,"host":H,"port":P}}      ← the same, or {"error":"…"} and the end
    → {"n":1,"begin":true}                           a snapshot: what is not in it is gone at its end
    → {"n":2,"sinks":[[stream,channel,name,ip,port,window],…],"sources":[[stream,channel,name,id,ip,port],…]}
    → {"n":3,"end":true}
    → {"n":4,"sinks":[[stream,channel,name],…],"sources":[[stream,channel,name,id],…]}   gone
    → {"ping":k}                                     ← {"pong":k}
                                                     ← {"ack":n} all up to n are in force

What must hold: a peer can name only its own address and its own sources, so that it cannot turn our traffic on others;
what it can make us remember is bounded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from libqos.errors import QosError
from selened.plans import Key
from selened.wire import MAX_NAME, Address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION: Final = 1
MAX_LINE_BYTES: Final = 1 << 20
MAX_ENTRIES: Final = 65536  # sinks, and sources, of one peer
CHUNK: Final = 500  # entries of one line: 500 names of 255 bytes, each escaped to six, stay below the longest line

SinkUpdate = tuple[Key, tuple[Address, int] | None]
SourceUpdate = tuple[Key, int, Address | None]


class PeerError(QosError):
    """A peer that does not keep to the protocol."""


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One line as a message. Raises PeerError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise PeerError(f"found {line[:40]!r}, accepted one JSON object a line") from None
    if type(message) is not dict:
        raise PeerError(f"found {line[:40]!r}, accepted a JSON object")
    return message


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks. `host` is that of the datapath process."""

    host: int
    port: int

    def message(self) -> dict[str, Any]:
        return {"hello": {"version": VERSION, "host": self.host, "port": self.port}}


def parse_hello(message: dict[str, Any]) -> Hello:
    """Check a greeting. Raises PeerError, with what the other side said if it refused us."""
    if "error" in message:
        raise PeerError(f"it refuses: {str(message['error'])[:200]}")
    hello = message.get("hello")
    if type(hello) is not dict:
        raise PeerError("found no greeting; is this port selened's?")
    version = hello.get("version")
    if version != VERSION:
        raise PeerError(f"found version {str(version)[:20]} of the peer protocol, accepted {VERSION}: use one release")
    host, port = hello.get("host"), hello.get("port")
    if not _number(host, 1 << 32) or not _number(port, 1 << 16):
        raise PeerError("found a greeting without host and port")
    return Hello(host, port)


def _number(value: Any, end: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < end


@dataclass
class Table:
    """What the peer at `ip` with host id `host` has announced."""

    ip: str
    host: int
    sinks: dict[Key, tuple[Address, int]] = field(default_factory=dict)
    sources: dict[int, tuple[Key, Address]] = field(default_factory=dict)
    last: int = 0  # number of the last announcement
    complete: bool = False  # a snapshot has ended
    _fresh: tuple[set[Key], set[int]] | None = None  # what the snapshot under way has named

    def apply(self, message: dict[str, Any]) -> tuple[list[SinkUpdate], list[SourceUpdate]]:
        """Take one announcement in; gives what changed. Raises PeerError, and then nothing of it is taken in."""
        number = message.get("n")
        if not _number(number, 1 << 63) or number != self.last + 1:
            raise PeerError(f"found announcement {str(number)[:24]}, accepted number {self.last + 1}")
        self.last += 1
        # All of it is checked before any of it is taken in: what is refused must leave no trace that nobody withdraws.
        named_sinks = [self._sink(entry) for entry in _list(message, "sinks")]
        named_sources = self._sources(_list(message, "sources"))
        if (
            len(self.sinks) + sum(listen is not None and key not in self.sinks for key, listen in named_sinks)
            > MAX_ENTRIES
        ):
            raise PeerError(f"found more than {MAX_ENTRIES} channels with sinks")
        if (
            len(self.sources) + sum(at is not None and of not in self.sources for _, of, at in named_sources)
            > MAX_ENTRIES
        ):
            raise PeerError(f"found more than {MAX_ENTRIES} sources")
        if "begin" in message:
            self._fresh = (set(), set())
        sinks = [update for update in named_sinks if self._take_sink(*update)]
        sources = [update for update in named_sources if self._take_source(*update)]
        if "end" in message and self._fresh is not None:
            fresh, self._fresh, self.complete = self._fresh, None, True
            sinks += [(key, None) for key in self.sinks.keys() - fresh[0]]
            sources += [(self.sources[source][0], source, None) for source in self.sources.keys() - fresh[1]]
            for key, _ in sinks:
                if key not in fresh[0]:
                    self.sinks.pop(key, None)
            for _, source, _ in sources:
                if source not in fresh[1]:
                    self.sources.pop(source, None)
        return sinks, sources

    def _sink(self, entry: list[Any]) -> SinkUpdate:
        key = _key(entry)
        if len(entry) == 3:
            return key, None
        if len(entry) != 6 or not _number(entry[5], 1 << 31):
            raise PeerError("found a sink of another shape")
        return key, (self._address(entry[3], entry[4]), int(entry[5]))

    def _take_sink(self, key: Key, listen: tuple[Address, int] | None) -> bool:
        """Whether that is news."""
        if listen is None:
            return self.sinks.pop(key, None) is not None
        if self._fresh is not None:
            self._fresh[0].add(key)
        news = self.sinks.get(key) != listen
        self.sinks[key] = listen
        return news

    def _sources(self, entries: list[list[Any]]) -> list[SourceUpdate]:
        updates: list[SourceUpdate] = []
        keys: dict[int, Key] = {}
        for entry in entries:
            key = _key(entry)
            if len(entry) not in (4, 6) or not _number(entry[3], 1 << 64) or entry[3] >> 32 != self.host:
                raise PeerError("found a source of another shape, or of another host")
            source = int(entry[3])
            if keys.setdefault(source, self.sources[source][0] if source in self.sources else key) != key:
                raise PeerError("found a source that moved to another channel")
            updates.append((key, source, self._address(entry[4], entry[5]) if len(entry) == 6 else None))
        return updates

    def _take_source(self, key: Key, source: int, address: Address | None) -> bool:
        """Whether that is news."""
        if address is None:
            return self.sources.pop(source, None) is not None
        if self._fresh is not None:
            self._fresh[1].add(source)
        news = self.sources.get(source) != (key, address)
        self.sources[source] = (key, address)
        return news

    def _address(self, ip: object, port: object) -> Address:
        if ip != self.ip:
            raise PeerError(f"found the address {str(ip)[:40]}, accepted its own {self.ip}")
        if type(port) is not int or not 0 < port < 65536:
            raise PeerError("found a port that does not exist")
        return Address(self.ip, port)


def _list(message: dict[str, Any], name: str) -> list[list[Any]]:
    entries = message.get(name, [])
    if type(entries) is not list or not all(type(entry) is list and len(entry) >= 3 for entry in entries):
        raise PeerError(f"found {name} of another shape")
    return entries


def _key(entry: list[Any]) -> Key:
    stream, channel, name = entry[:3]
    if not _number(stream, 1 << 32) or not _number(channel, 1 << 64) or type(name) is not str:
        raise PeerError("found a channel of another shape")
    if len(name.encode(errors="surrogatepass")) > MAX_NAME or "\0" in name:
        raise PeerError(f"found a channel name that is too long, accepted {MAX_NAME} bytes")
    return Key(stream, channel, name)


def announcements(
    listens: Mapping[Key, tuple[Address, int] | None], sources: Mapping[int, tuple[Key, Address | None]]
) -> Iterator[dict[str, Any]]:
    """Messages (without their numbers) that tell changes of sinks and sources."""
    sinks = [[*key, *listen[0], listen[1]] if listen is not None else [*key] for key, listen in listens.items()]
    rows = [
        [*key, source, *address] if address is not None else [*key, source]
        for source, (key, address) in sources.items()
    ]
    for at in range(0, len(sinks), CHUNK):
        yield {"sinks": sinks[at : at + CHUNK]}
    for at in range(0, len(rows), CHUNK):
        yield {"sources": rows[at : at + CHUNK]}
