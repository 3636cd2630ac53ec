# SPDX-License-Identifier: Apache-2.0
"""Management messages of the Precision Time Protocol: questions to a clock and its answers, as bytes.

IEEE 1588-2008, clause 15 (management) and clause 13.3 (common header); TIME_STATUS_NP is linuxptp's own. ptp4l answers
whoever may write to its unix datagram socket (`uds_address`), one datagram a message. There is no state but the
sequence number, which the answer repeats; a question about ports is answered by a message for each port.

Only what asks is written here (GET), and only the data sets below are read: nothing here changes a clock. All that
comes is checked, and `Error` says what was found; fields that a later version appends are ignored.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from libqos.errors import QosError

if TYPE_CHECKING:
    from collections.abc import Callable


class Error(QosError):
    """Bytes that are no management message, or one that says that the question failed."""


class Id(enum.IntEnum):
    """managementId: table 40 of the standard; linuxptp's own from 0xC000."""

    CURRENT_DATA_SET = 0x2001
    PORT_DATA_SET = 0x2004
    TIME_STATUS_NP = 0xC000


class PortState(enum.IntEnum):
    """Table 8 of the standard."""

    INITIALIZING = 1
    FAULTY = 2
    DISABLED = 3
    LISTENING = 4
    PRE_MASTER = 5
    MASTER = 6
    PASSIVE = 7
    UNCALIBRATED = 8
    SLAVE = 9


@dataclass(frozen=True, slots=True)
class CurrentDataSet:
    """15.5.3.4.1; times in ns."""

    steps_removed: int
    offset_from_master_ns: float
    mean_path_delay_ns: float


@dataclass(frozen=True, slots=True)
class PortDataSet:
    """What is used of 15.5.3.5.1. `port` counts from 1, in the order of ptp4l's configuration."""

    port: int
    state: PortState
    peer_mean_path_delay_ns: float


@dataclass(frozen=True, slots=True)
class TimeStatus:
    """What is used of linuxptp's TIME_STATUS_NP. `ingress_ns`: when the last Sync came in, by the clock that is set;
    `grandmaster`: as linuxptp writes it, 001b19.fffe.123456, which is the clock itself where `present` is False."""

    master_offset_ns: int
    ingress_ns: int
    present: bool
    grandmaster: str


DataSet = CurrentDataSet | PortDataSet | TimeStatus


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of a clock's."""

    sequence: int
    id: Id
    data: DataSet


# messageType, version, length, domain, flags, correction, reserved, port identity, sequence, control, interval
_HEADER: Final = struct.Struct("!BBHBxHqI8sHHBb")
# target port identity, starting boundary hops, boundary hops, action; then the TLV: type, length, managementId
_MANAGEMENT: Final = struct.Struct("!8sHBBBxHHH")
_SIZE: Final = _HEADER.size + _MANAGEMENT.size
_CURRENT: Final = struct.Struct("!Hqq")
_PORT: Final = struct.Struct("!8sHBbqbBbBbB")
_TIME_STATUS: Final = struct.Struct("!qqiiHHQHi8s")

_MANAGEMENT_MESSAGE: Final = 0xD
_VERSION: Final = 2
_CONTROL: Final = 4
_GET, _RESPONSE = 0, 2
_TLV_MANAGEMENT, _TLV_ERROR = 1, 2
_ANYBODY: Final = b"\xff" * 8
_ANY_PORT: Final = 0xFFFF
_NS: Final = 1 << 16  # a TimeInterval is in units of 2⁻¹⁶ ns

ERRORS: Final = {
    1: "RESPONSE_TOO_BIG", 2: "NO_SUCH_ID", 3: "WRONG_LENGTH", 4: "WRONG_VALUE", 5: "NOT_SETABLE", 6: "NOT_SUPPORTED",
    0xFFFE: "GENERAL_ERROR",
}  # fmt: skip


def get(what: Id, sequence: int, *, domain: int = 0, transport_specific: int = 0) -> bytes:
    """A question to the clock at the other end of the socket and all of its ports.

    `sequence`: 16 bits, repeated in the answer; `domain`: must be the clock's, which ignores others;
    `transport_specific`: 4 bits, 1 for a clock of IEEE 802.1AS."""
    header = _HEADER.pack(
        transport_specific << 4 | _MANAGEMENT_MESSAGE, _VERSION, _SIZE, domain, 0, 0, 0, bytes(8), 1, sequence,
        _CONTROL, 0x7F,
    )  # fmt: skip
    return header + _MANAGEMENT.pack(_ANYBODY, _ANY_PORT, 0, 0, _GET, _TLV_MANAGEMENT, 2, what)


def parse(data: bytes) -> Answer:
    """What a clock has answered. Raises Error."""
    if len(data) < _SIZE:
        raise Error(f"found {len(data)} bytes, accepted a management message of at least {_SIZE}")
    kind, version, length, _, _, _, _, _, _, sequence, _, _ = _HEADER.unpack_from(data)
    *_, action, tlv, tlv_length, number = _MANAGEMENT.unpack_from(data, _HEADER.size)
    if kind & 0x0F != _MANAGEMENT_MESSAGE or version & 0x0F != _VERSION:
        raise Error(f"found type {kind & 0x0F}, version {version & 0x0F}, accepted type 13, version 2")
    if length > len(data) or _SIZE - 2 + tlv_length > length:
        raise Error(f"found lengths {length} and {tlv_length} in {len(data)} bytes")
    if action & 0x0F != _RESPONSE:
        raise Error(f"found action {action & 0x0F}, accepted an answer ({_RESPONSE})")
    if tlv == _TLV_ERROR:
        raise Error(f"the clock answered {ERRORS.get(number, hex(number))}")
    body = data[_SIZE : _SIZE - 2 + tlv_length]
    try:
        return Answer(sequence, Id(number), _DATA[Id(number)](body))
    except (ValueError, struct.error) as error:
        raise Error(f"found data set {number:#06x} of {len(body)} bytes: {error}") from error


def _current(body: bytes) -> CurrentDataSet:
    steps, offset, delay = _CURRENT.unpack_from(body)
    return CurrentDataSet(steps, offset / _NS, delay / _NS)


def _port(body: bytes) -> PortDataSet:
    _, number, state, _, delay, *_ = _PORT.unpack_from(body)
    return PortDataSet(number, PortState(state), delay / _NS)


def _time_status(body: bytes) -> TimeStatus:
    offset, ingress, *_, present, identity = _TIME_STATUS.unpack_from(body)
    text = identity.hex()
    return TimeStatus(offset, ingress, bool(present), f"{text[:6]}.{text[6:10]}.{text[10:]}")


_DATA: Final[dict[Id, Callable[[bytes], CurrentDataSet | PortDataSet | TimeStatus]]] = {
    Id.CURRENT_DATA_SET: _current,
    Id.PORT_DATA_SET: _port,
    Id.TIME_STATUS_NP: _time_status,
}
