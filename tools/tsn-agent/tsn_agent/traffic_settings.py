# SPDX-License-Identifier: Apache-2.0
"""The configuration tables of tsn-talker and tsn-listener: one stream by options, or several as `[[streams]]`.

All times are nanoseconds once read; as text they take a unit (`250us`, `1ms`). Instants are TAI.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from libqos.config import option, sections
from libqos.policy import duration_ns

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_STREAMS: Final = 64  # QOS_TALKER_STREAMS_MAX, QOS_LISTENER_STREAMS_MAX: a test holds them together
HEADER_BYTES: Final = 32  # QOS_PACKET_SIZE
DEFAULT_PORT: Final = 7472
_T = TypeVar("_T", bound="_Stream")
_MAX_INSTANT: Final = (1 << 63) - 1
_NAME: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,64}")
_MAC: Final = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


def _time(least_ns: int, most_ns: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        found = value if type(value) is int else duration_ns(value) if isinstance(value, str) else -1
        if not least_ns <= found <= most_ns:
            raise ValueError
        return found

    return parse


def _duration(default: int, meaning: str, least_ns: int = 0, most_ns: int = 3600 * 10**9) -> Any:
    accepted = f"a time such as 250us or 1ms, or nanoseconds; {least_ns:_} to {most_ns:_} ns"
    return option(default, meaning=meaning, parse=_time(least_ns, most_ns), accepted=accepted)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError
    return value


def _destination(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    if value and not _MAC.fullmatch(value):
        if "%" in value:
            raise ValueError("the interface of a link-local one is an option of its own")
        return str(ipaddress.ip_address(value))
    return value.lower()


def _is_link_local(address: str) -> bool:
    return ":" in address and not is_mac(address) and ipaddress.ip_address(address).is_link_local


def is_mac(destination: str) -> bool:
    """Whether a destination is that of raw Ethernet."""
    return bool(_MAC.fullmatch(destination))


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """What both ends say of a stream."""

    name: str = option("stream", meaning="name in records, and towards the agent", parse=_name,
                       accepted="text of 1 to 64 characters without blanks")  # fmt: skip
    id: int = option(1, minimum=0, maximum=(1 << 32) - 1, meaning="number of the stream in its packets")
    port: int = option(DEFAULT_PORT, minimum=1, maximum=65535, meaning="UDP port")


@dataclass(frozen=True, kw_only=True)
class Talk(_Stream):
    """A stream that is sent."""

    destination: str = option("", meaning="where to: an IP address (UDP), or a MAC address (raw Ethernet, EtherType"
                              " 0x88B5)", parse=_destination, accepted="an IPv4, IPv6 or MAC address")  # fmt: skip
    interface: str = option("", meaning="interface to send from; with a MAC address it must be given")
    vlan: int = option(0, minimum=0, maximum=4094, meaning="VLAN: a tag in the frame (raw Ethernet), or the interface"
                       " INTERFACE.VLAN (UDP); 0 none")  # fmt: skip
    priority: int = option(0, minimum=0, maximum=15, meaning="SO_PRIORITY, and PCP of a tag; above 6 it needs"
                           " CAP_NET_ADMIN")  # fmt: skip
    period: int = _duration(1_000_000, "time from packet to packet", least_ns=1000)
    offset: int = _duration(0, "of the packet within the period")
    base_time: int = option(0, minimum=0, maximum=_MAX_INSTANT, meaning="TAI instant in ns that periods are counted"
                            " from; one that has passed is advanced by whole periods")  # fmt: skip
    size: int = option(64, minimum=HEADER_BYTES, maximum=65507, meaning=f"payload in bytes, {HEADER_BYTES} of them"
                       " the header")  # fmt: skip
    count: int = option(0, minimum=0, maximum=_MAX_INSTANT, meaning="periods to send in; 0 no end")
    launch_time: bool = option(False, meaning="give each packet its launch time (SO_TXTIME; needs the etf queueing"
                               " discipline)")  # fmt: skip
    lead: int = _duration(500_000, "how long before its launch time a packet is sent", most_ns=10**9)
    deadline_mode: bool = option(False, meaning="with a launch time: it is the latest one")
    report_errors: bool = option(True, meaning="with a launch time: ask the kernel to tell what it dropped")
    transmit_times: bool = option(False, meaning="a record of when each packet left (SO_TIMESTAMPING)")

    def __post_init__(self) -> None:
        if is_mac(self.destination) and not self.interface:
            raise ValueError("interface: found nothing, accepted the name of one where destination is a MAC address")
        if self.vlan and not self.interface:
            raise ValueError("interface: found nothing, accepted the name of the one that vlan is on")
        if _is_link_local(self.destination) and not self.interface:
            raise ValueError("interface: found nothing, accepted the name of one where destination is link-local")


@dataclass(frozen=True, kw_only=True)
class Listen(_Stream):
    """A stream that is expected."""

    address: str = option("", meaning="address to listen on; any if there is none", parse=_destination,
                          accepted="an IPv4 or IPv6 address")  # fmt: skip
    interface: str = option("", meaning="interface to listen on; any if there is none")
    ethernet: bool = option(False, meaning="raw Ethernet on interface, in place of UDP")
    period: int = _duration(1_000_000, "publication cycle", least_ns=1000)
    deadline: int = _duration(0, "length of the window that a packet has to arrive in; 0 the period")
    base_time: int = option(-1, minimum=-1, maximum=_MAX_INSTANT, meaning="TAI instant in ns that cycles, and with"
                            " them windows, begin at; -1 at each packet's launch instant")  # fmt: skip
    silence: int = option(3, minimum=0, maximum=1_000_000, meaning="cycles without a packet after which a stream is"
                          " said to be silent; 0 never")  # fmt: skip

    def __post_init__(self) -> None:
        if self.ethernet and not self.interface:
            raise ValueError("interface: found nothing, accepted the name of one with ethernet")
        if _is_link_local(self.address) and not self.interface:
            raise ValueError("interface: found nothing, accepted the name of one where address is link-local")
        if is_mac(self.address):
            raise ValueError("address: found a MAC address, accepted an IP address, or ethernet with interface")


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What concerns the whole command."""

    interval: int = _duration(10**9, "time between records of counters", least_ns=10**7)
    agent: str = option("", meaning="control socket of tsn-agent, for orders and alarms; none is asked for any")
    scheduling: str = option("other", choices=("other", "fifo", "rr"), meaning="scheduling class of the loop")
    rt_priority: int = option(80, minimum=1, maximum=99, meaning="real-time priority under fifo and rr")
    cpu: int = option(-1, minimum=-1, maximum=1023, meaning="CPU of the loop; -1 any")
    lock_memory: bool = option(False, meaning="keep the memory of the process in RAM")


@dataclass(frozen=True, kw_only=True)
class TalkerSettings(Talk, _Common):
    """All of tsn-talker."""

    spin: int = _duration(200_000, "the last stretch before an instant, which is spun; 0 in simulated time",
                          most_ns=10_000_000)  # fmt: skip
    hold: bool = option(False, meaning="send nothing before the agent says so")
    streams: tuple[Talk, ...] = sections(Talk, maximum=MAX_STREAMS, meaning="one of several streams")

    def __post_init__(self) -> None:
        _check_streams(self, Talk, self.streams)
        if not self.streams:
            super().__post_init__()
        for number, stream in enumerate(self.all_streams()):
            if not stream.destination:
                where = f"streams[{number}]." if self.streams else ""
                raise ValueError(f"{where}destination: found nothing, accepted an IPv4, IPv6 or MAC address")
        if self.hold and not self.agent:
            raise ValueError("hold: found without agent, accepted with the socket of one")

    def all_streams(self) -> tuple[Talk, ...]:
        """The streams, however they were given."""
        return self.streams or (_only(Talk, self),)


@dataclass(frozen=True, kw_only=True)
class ListenerSettings(Listen, _Common):
    """All of tsn-listener."""

    count: int = option(0, minimum=0, maximum=_MAX_INSTANT, meaning="end when every stream has come to so many"
                        " periods; 0 never")  # fmt: skip
    duration: int = _duration(0, "end after so long; 0 never", most_ns=_MAX_INSTANT)
    timeout: int = _duration(0, "end when nothing has come for so long; before count that is a failure; 0 never")
    samples: bool = option(False, meaning="a record for each packet")
    streams: tuple[Listen, ...] = sections(Listen, maximum=MAX_STREAMS, meaning="one of several streams")

    def __post_init__(self) -> None:
        _check_streams(self, Listen, self.streams)
        if not self.streams:
            super().__post_init__()

    def all_streams(self) -> tuple[Listen, ...]:
        """The streams, however they were given."""
        return self.streams or (_only(Listen, self),)


def _only(table: type[_T], settings: Any) -> _T:
    """The stream that the options of the command describe."""
    return table(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(table)})


def _check_streams(settings: Any, table: type[Any], streams: tuple[Any, ...]) -> None:
    """One stream by options or several by tables, and no two alike."""
    if not streams:
        return
    for field in dataclasses.fields(table):
        if getattr(settings, field.name) != field.default:
            raise ValueError(f"{field.name}: found beside [[streams]], accepted inside each of them only")
    for key in ("name", "id"):
        seen: set[Any] = set()
        for number, stream in enumerate(streams):
            value = getattr(stream, key)
            if value in seen:
                raise ValueError(f"streams[{number}].{key}: found {value!r} a second time, accepted one of its own")
            seen.add(value)
