# SPDX-License-Identifier: Apache-2.0
"""The table of daemons that announce themselves on our links. No socket and no clock here: time comes in.

Anybody on the link can announce. What must hold: the table is bounded; only an address that is allowed, and that the
sender can be believed to have, becomes a peer; one that is connected is not let go for want of announcements (a switch
may lose them), nor because somebody says goodbye in its name.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from selened.announcement import Announcement
    from selened.wire import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_LIFETIME_S: Final = 300
# What is heard ends in one of these; `heard` are those of our site that count.
COUNTERS: Final = (
    "heard", "own", "other_sites", "stale", "full", "forged", "conflicts", "rubbish", "other_versions",
    "unauthenticated",
)  # fmt: skip
GOODBYE_S: Final = 1.0  # from a goodbye to the end, as in RFC 6762, 10.1


class Where(NamedTuple):
    """Where an announcement was heard, and who sent it. `networks` are those of the interface."""

    interface: str
    group: str
    source: str
    networks: tuple[Network, ...]


@dataclass(slots=True)
class Neighbour:
    """One that announces. `refusal` says why it is not a peer, or is empty."""

    announcement: Announcement
    where: Where
    first_ns: int  # Unix time
    last_ns: int
    expires: float  # of the clock that is passed in
    refusal: str = ""
    before: int = 0  # its instance before this one
    contested: bool = False

    @property
    def address(self) -> Address:
        return self.announcement.address


class Neighbours:
    """Those who announce. `own` is what we announce; `warn` counts and logs."""

    def __init__(
        self, own: Callable[[], Announcement], allow: Sequence[Network], maximum: int, warn: Callable[[str, str], None]
    ) -> None:
        self._own = own
        self._allow = allow
        self._maximum = maximum
        self._warn = warn
        self.entries: dict[Address, Neighbour] = {}
        self.counts: Counter[str] = Counter()

    @property
    def accepted(self) -> list[Neighbour]:
        """Those that are to be peers."""
        return [item for item in self.entries.values() if not item.refusal]

    def take(self, said: Announcement, where: Where, now: float, now_ns: int) -> bool:
        """Take an announcement in. Gives whether it is news: a new daemon, a new start of one, or a new judgement."""
        own = self._own()
        if said.instance == own.instance:
            self.counts["own"] += 1
            return False
        if said.site != own.site:
            self.counts["other_sites"] += 1
            return False
        if not self._believable(said, where, own):
            return False
        known = self.entries.get(said.address)
        if known is not None and said.sent_ns < known.announcement.sent_ns:  # overtaken, or recorded and sent again
            self.counts["stale"] += 1
            return False
        self.counts["heard"] += 1
        if not said.lifetime_s:
            if known is not None and known.announcement.instance == said.instance:
                known.expires = min(known.expires, now + GOODBYE_S)
            return False
        refusal = self._refusal(said, where, own)
        if known is None and not self._room(bool(refusal)):
            self.counts["full"] += 1
            self._warn("discovery_full", f"{said.address} announces itself, one more than {self._maximum} (max_peers)")
            return False
        expires = now + min(said.lifetime_s, MAX_LIFETIME_S)
        if known is None:
            known = self.entries[said.address] = Neighbour(said, where, now_ns, now_ns, expires, refusal)
            news = True
            if refusal:
                self._warn("discovery_refused", f"{said.address} announces itself on {where.interface}: {refusal}")
        else:
            news = known.announcement.instance != said.instance or known.refusal != refusal
        self._look_for_conflicts(known, said, own)
        known.announcement, known.where, known.refusal = said, where, refusal
        known.last_ns, known.expires = now_ns, expires
        return news

    def expire(self, now: float, connected: Callable[[Address], bool]) -> list[Neighbour]:
        """Forget those whose time is over and who are not connected; gives them."""
        gone = [item for item in self.entries.values() if item.expires <= now and not connected(item.address)]
        for item in gone:
            del self.entries[item.address]
        return gone

    def allows(self, ip: str, networks: Sequence[Network]) -> bool:
        """Whether an address may be a peer: one of `allow`, or if that is empty, of our own networks on the link."""
        address = ipaddress.ip_address(ip)
        return any(address in network for network in self._allow or networks)

    def _room(self, refused: bool) -> bool:
        return sum(bool(item.refusal) == refused for item in self.entries.values()) < self._maximum

    def _believable(self, said: Announcement, where: Where, own: Announcement) -> bool:
        """Whether the sender can have the address that it announces. Over IPv6 multicast comes from another one, that
        of the link; then there is nothing to compare."""
        source, address = ipaddress.ip_address(where.source), ipaddress.ip_address(said.address.ip)
        if source != address and source.version == address.version and not source.is_link_local:
            self._conflict("forged", f"{source} announces {said.address}, and a daemon can announce only itself")
            return False
        if said.address == own.address:
            self._conflict("conflicts", f"another daemon announces our own address {said.address} on {where.interface}")
            return False
        return True

    def _refusal(self, said: Announcement, where: Where, own: Announcement) -> str:
        """Why it must not be a peer, or ''."""
        if ipaddress.ip_address(said.address.ip).version != ipaddress.ip_address(own.address.ip).version:
            return f"its address is of another family than {own.address.ip}"
        if self.allows(said.address.ip, where.networks):
            return ""
        networks = ", ".join(map(str, self._allow or where.networks)) or "none"
        return f"not in {'allow' if self._allow else 'a network of this interface'} ({networks})"

    def _look_for_conflicts(self, known: Neighbour, said: Announcement, own: Announcement) -> None:
        """Two daemons with one address (the instance changes back to one that was there before), or with one host id.
        Said, and left to the connection, which takes only one: to refuse on hearsay would let strangers shut out peers.
        """
        if said.instance != known.announcement.instance:
            if said.instance == known.before and not known.contested:
                known.contested = True
                self._conflict("conflicts", f"two daemons announce {said.address}; give one another address")
            known.before = known.announcement.instance
        others = [item for item in self.entries.values() if item.announcement.host == said.host and item is not known]
        if (others or said.host == own.host) and not known.contested:
            known.contested = True
            other = others[0].address if others else "this host"
            self._conflict("conflicts", f"{said.address} announces the host id {said.host:08x}, as {other} does")

    def _conflict(self, counter: str, text: str) -> None:
        self.counts[counter] += 1
        self._warn(f"discovery_{counter}", text)
