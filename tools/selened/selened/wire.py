# SPDX-License-Identifier: Apache-2.0
"""The packets of the local protocols (tools/selened/proto/proto.h), built and parsed by the compiler's own layout.

What must hold: a packet is copied and its length checked before a field is read; nothing that a client sent raises
anything but `RubbishError` out of here. This is the only module that knows where the binding lives.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import Any, Final, NamedTuple

from selene._selene import ffi as ffi
from selene._selene import lib as lib

from libqos.errors import QosError

MAGIC: Final[int] = lib.SELENE_PROTO_MAGIC
VERSION: Final[int] = lib.SELENE_PROTO_VERSION
MAX_PACKET: Final[int] = lib.SELENE_MAX_PACKET
MAX_FDS: Final[int] = lib.SELENE_MAX_FDS
MAX_NAME: Final[int] = lib.SELENE_MAX_NAME
MAX_TEXT: Final[int] = lib.SELENE_MAX_TEXT
MAX_ENDPOINTS: Final[int] = lib.SELENE_MAX_ENDPOINTS
MAX_DESTS: Final[int] = lib.SELENE_MAX_DESTS
MAX_ACCEPT: Final[int] = lib.SELENE_MAX_ACCEPT
MAX_SESSIONS: Final[int] = lib.SELENE_MAX_SESSIONS

RELAYED: Final[int] = lib.SELENE_RELAYED
DIRECT: Final[int] = lib.SELENE_DIRECT
RESUME: Final[int] = lib.SELENE_RESUME

HEADER_BYTES: Final[int] = ffi.sizeof("struct selene_msg")
MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class RubbishError(QosError):
    """A packet that is not of this protocol."""


class VersionError(QosError):
    """A packet of this protocol in another version. `version` is theirs."""

    def __init__(self, version: int) -> None:
        super().__init__(f"found protocol version {version}, accepted {VERSION}; use client and daemon of one release")
        self.version = version


class RefusedError(QosError):
    """A request that cannot be granted; `error` is a positive errno, the text says what to do."""

    def __init__(self, error: int, text: str) -> None:
        super().__init__(text)
        self.error = error


class Address(NamedTuple):
    """An IP address and a port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


# Of a source on this host whose datagrams come from the datapath process and not from the network.
NOWHERE: Final = Address("", 0)


class Header(NamedTuple):
    """The start of every packet."""

    type: int
    request: int


def header(data: bytes) -> Header:
    """Check the start of a packet. Raises RubbishError, or VersionError (then everything behind it is unknown)."""
    if len(data) < HEADER_BYTES:
        raise RubbishError(f"found a packet of {len(data)} bytes, accepted at least {HEADER_BYTES}")
    message = _copy("selene_msg", data[:HEADER_BYTES])
    if message.magic != MAGIC:
        raise RubbishError(f"found a packet that starts with {message.magic:#010x}, accepted {MAGIC:#010x}")
    if message.version != VERSION:
        raise VersionError(message.version)
    if message.length != len(data):
        raise RubbishError(f"found a packet of {len(data)} bytes that says {message.length}")
    return Header(message.type, message.request)


def _copy(struct: str, data: bytes) -> Any:
    target = ffi.new(f"struct {struct} *")
    ffi.memmove(target, data, len(data))
    return target


def parse(struct: str, data: bytes, *, tail: str = "") -> Any:
    """A copy of a packet as `struct`. Its length is exactly that of the structure, or at least up to the field `tail`,
    whose missing rest is zero. Raises RubbishError."""
    size = ffi.sizeof(f"struct {struct}")
    least = ffi.offsetof(f"struct {struct}", tail) if tail else size
    if not least <= len(data) <= size:
        raise RubbishError(f"found {len(data)} bytes of {struct}, accepted {least} to {size}")
    return _copy(struct, data)


def records(struct: str, item: str, data: bytes) -> list[Any]:
    """Copies of the `count` items `struct item` that follow the fixed part of `struct`. Raises RubbishError."""
    size = ffi.sizeof(f"struct {struct}")
    each = ffi.sizeof(f"struct {item}")
    if len(data) < size:
        raise RubbishError(f"found {len(data)} bytes of {struct}, accepted at least {size}")
    count = _copy(struct, data[:size]).count
    if len(data) != size + count * each:
        raise RubbishError(f"found {len(data)} bytes of {struct} with {count} entries, accepted {size + count * each}")
    return [_copy(item, data[at : at + each]) for at in range(size, len(data), each)]


def numbers(struct: Any) -> dict[str, int]:
    """The fields of a structure that has only numbers."""
    kind = ffi.typeof(struct)
    fields = kind.item.fields if kind.kind == "pointer" else kind.fields
    return {name: int(getattr(struct, name)) for name, _ in fields}


def build(struct: str, kind: int, request: int = 0, /, **fields: object) -> bytes:
    """A packet. Fields are cffi initialisers; a flexible array is a list."""
    packet = ffi.new(f"struct {struct} *", fields)
    buffer = ffi.buffer(packet)
    packet.msg.magic = MAGIC
    packet.msg.version = VERSION
    packet.msg.type = kind
    packet.msg.length = len(buffer)
    packet.msg.request = request
    return bytes(buffer)


def error(request: int, number: int, text: str) -> bytes:
    """An S_ERROR packet."""
    return build("selene_error", lib.SELENE_S_ERROR, request, error=number, text=cut(text))


def ok(request: int) -> bytes:
    """An S_OK packet."""
    return bare(lib.SELENE_S_OK, request)


def bare(kind: int, request: int = 0) -> bytes:
    """A packet that is a header only."""
    packet = ffi.new("struct selene_msg *", (MAGIC, VERSION, kind, HEADER_BYTES, request))
    return bytes(ffi.buffer(packet))


def cut(text: str, size: int = MAX_TEXT) -> bytes:
    """Text for a field of `size` bytes with its final zero, never cut inside a character."""
    return text.encode()[: size - 1].decode(errors="ignore").encode()


def text_of(field: Any) -> str:
    """The text of a character array, whatever is in it."""
    raw: bytes = bytes(ffi.buffer(field)).split(b"\0", 1)[0]
    return raw.decode(errors="replace")


def pack_address(address: Address) -> dict[str, object]:
    """The initialiser of a struct selene_addr."""
    if not address.ip:
        return {}
    ip = ipaddress.ip_address(address.ip)
    return {"ip": ip.packed if ip.version == 6 else MAPPED + ip.packed, "port": address.port}


def name_of(packet: Any) -> str:
    """The channel name of a struct selene_endpoint_open. Raises RefusedError."""
    length = packet.name_length
    if length > MAX_NAME:
        raise RefusedError(errno.ENAMETOOLONG, f"channel name of {length} bytes, accepted at most {MAX_NAME}")
    raw: bytes = bytes(ffi.buffer(packet.name))[:length]
    if b"\0" in raw:
        raise RefusedError(errno.EINVAL, "channel name with a zero byte, accepted text in UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RefusedError(errno.EILSEQ, f"channel name {raw[:40]!r}, accepted text in UTF-8") from None
