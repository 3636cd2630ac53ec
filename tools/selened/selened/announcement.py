# SPDX-License-Identifier: Apache-2.0
"""The datagram by which daemons find each other: bytes in, an announcement out. No socket here.

Fixed width, little endian; docs/discovery.md has it byte by byte. What must hold: `decode` raises nothing but
`AnnouncementError`, whatever the bytes; what it gives has been checked; one value has one encoding. A tag, where there
is a key, is the HMAC-SHA256 (RFC 2104) of everything before it.
"""

from __future__ import annotations

import hmac
import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from libqos.errors import QosError
from selened.wire import MAPPED, Address

MAGIC: Final = b"SELD"
VERSION: Final = 1
MAX_SITE_BYTES: Final = 63
TAG_BYTES: Final = 32
_TAGGED: Final = 1
_HEAD: Final = struct.Struct("<4sBBHIHBx16sQQ")
MAX_BYTES: Final = _HEAD.size + MAX_SITE_BYTES + TAG_BYTES


class AnnouncementError(QosError):
    """A datagram that is no announcement for us. `counter` is the name under which it is counted."""

    def __init__(self, counter: str, text: str) -> None:
        super().__init__(text)
        self.counter = counter


@dataclass(frozen=True, slots=True)
class Announcement:
    """A daemon that says where it is. `instance` differs with every start, `sent_ns` (Unix time) never falls in one
    instance. A lifetime of 0 s is a goodbye."""

    address: Address
    host: int
    instance: int
    lifetime_s: int
    sent_ns: int
    site: str = ""


def encode(announcement: Announcement, key: bytes = b"") -> bytes:
    """The datagram, with a tag if there is a key."""
    site = announcement.site.encode()
    ip = ipaddress.ip_address(announcement.address.ip)
    head = _HEAD.pack(
        MAGIC, VERSION, _TAGGED if key else 0, announcement.lifetime_s, announcement.host, announcement.address.port,
        len(site), ip.packed if ip.version == 6 else MAPPED + ip.packed, announcement.instance, announcement.sent_ns,
    )  # fmt: skip
    data = head + site
    return data + hmac.digest(key, data, "sha256") if key else data


def decode(data: bytes, key: bytes = b"") -> Announcement:
    """Check a datagram. Raises AnnouncementError."""
    if data[:4] != MAGIC or len(data) < 5:
        raise AnnouncementError("rubbish", f"found {data[:8]!r}, accepted {MAGIC!r} at the start")
    if data[4] != VERSION:
        raise AnnouncementError("other_versions", f"found version {data[4]} of an announcement, accepted {VERSION}")
    if len(data) < _HEAD.size:
        raise AnnouncementError("rubbish", f"found {len(data)} bytes, accepted at least {_HEAD.size}")
    _, _, flags, lifetime, host, port, site_bytes, packed, instance, sent = _HEAD.unpack_from(data)
    expected = _HEAD.size + site_bytes + (TAG_BYTES if flags & _TAGGED else 0)
    if flags & ~_TAGGED or data[15] or site_bytes > MAX_SITE_BYTES or len(data) != expected or not port:
        raise AnnouncementError("rubbish", f"found {len(data)} bytes, flags {flags:#x}, a site of {site_bytes} bytes")
    end = _HEAD.size + site_bytes
    if key and not (flags & _TAGGED and hmac.compare_digest(hmac.digest(key, data[:end], "sha256"), data[end:])):
        raise AnnouncementError("unauthenticated", "found an announcement without a tag of our key")
    if flags & _TAGGED and not key:
        raise AnnouncementError("unauthenticated", "found an announcement with a tag, and there is no key_file here")
    return Announcement(Address(_ip(packed), port), host, instance, lifetime, sent, _site(data[_HEAD.size : end]))


def _ip(packed: bytes) -> str:
    """An address that somebody can have, as text."""
    ip = ipaddress.ip_address(packed[12:] if packed[:12] == MAPPED else packed)
    reserved = ip.is_unspecified or ip.is_multicast or int(ip) == 0xFFFFFFFF
    if reserved or (ip.version == 6 and ip.is_link_local):
        raise AnnouncementError("rubbish", f"found the address {ip}, accepted one of a host")
    return str(ip)


def _site(raw: bytes) -> str:
    try:
        site = raw.decode()
    except UnicodeDecodeError:
        site = "\0"
    if site and not site.isprintable():
        raise AnnouncementError("rubbish", f"found the site {raw[:20]!r}, accepted printable text in UTF-8")
    return site
