# SPDX-License-Identifier: Apache-2.0
"""What applications ask for, and what they are granted: the interface to use and the instants to launch at.

A need comes with a destination; the kernel's routes tell the interface, its schedule tells the windows, and `admission`
finds a place beside the streams that have one already. Grants are kept in the journal until they are released, and
are looked for anew when the schedule changes (thesis 4.2.1: applications announce their needs to the control plane).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from libqos import clock
from libqos.codec.rtnl.refusals import RefusedError
from tsn_agent import capabilities
from tsn_agent.admission import Grant, Need, admit, wire_ns
from tsn_agent.kernel import FOREIGN

if TYPE_CHECKING:
    from tsn_agent.engine import Engine
    from tsn_agent.wanted import Resources, Value

Record = dict[str, Any]

MAX_STREAMS: Final = 1024
MAX_PERIOD_NS: Final = 3600 * 10**9
_UDP_BYTES: Final = 8
_IP_BYTES: Final = {4: 20, 6: 40}
_AHEAD_NS: Final = 10_000_000  # the first launch is far enough ahead for who asks to be ready
_FACT: Final = "streams"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an application asks for. Raises ValueError for what nobody could have."""

    stream: str
    destination: str
    period_ns: int
    size_bytes: int
    priority: int
    deadline_ns: int = 0
    interface: str | None = None
    speed_mbps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.stream, str) or not 1 <= len(self.stream) <= 64 or not self.stream.isprintable():
            raise ValueError("stream: accepted a name of 1 to 64 printable characters")
        try:
            ipaddress.ip_address(self.destination)
        except ValueError:
            raise ValueError(f"destination: found {self.destination!r}, accepted an IPv4 or IPv6 address") from None
        for name, low, high in (
            ("period_ns", 1, MAX_PERIOD_NS), ("size_bytes", 1, 65_507), ("priority", 0, 7),
            ("deadline_ns", 0, MAX_PERIOD_NS), ("speed_mbps", 1, 1_000_000),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "speed_mbps" and value is None:
                continue
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name}: found {value!r}, accepted {low} to {high}")
        if self.interface is not None and not isinstance(self.interface, str):
            raise ValueError(f"interface: found {self.interface!r}, accepted the name of an interface")

    @classmethod
    def of(cls, params: Record) -> Request:
        """From what came over a socket. Raises ValueError."""
        try:
            return cls(**params)
        except TypeError:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"found {', '.join(map(str, params))}, accepted {known}") from None


class Requests:
    """Belongs to the engine's thread, as the engine does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def streams(self) -> list[Record]:
        """What is granted now."""
        return list(self._read().values())

    def request(self, request: Request) -> Record:
        """A grant; one of the same name is replaced. Raises RefusedError with the reason why there is none."""
        granted = self._read()
        granted.pop(request.stream, None)
        if len(granted) >= MAX_STREAMS:
            raise RefusedError(f"found {MAX_STREAMS} streams, which is as many as are accepted; release one")
        record = self._grant(request, self._engine.kernel.resources(), granted)
        self._engine.journal.remember(_FACT, {**granted, request.stream: record})
        return record

    def release(self, stream: str) -> Record:
        """Give a place back. Raises RefusedError when there is no such stream."""
        granted = self._read()
        record = granted.pop(stream, None)
        if record is None:
            raise RefusedError(f"stream: found {stream!r}, accepted one of {', '.join(sorted(granted)) or '(none)'}")
        self._engine.journal.remember(_FACT, granted)
        return record

    def look_again(self) -> list[Record]:
        """After a change of schedules: records of the streams that have another place now, or none any more."""
        before = self._read()
        kept: dict[str, Record] = {}
        changed = []
        resources = self._engine.kernel.resources()
        for stream, record in before.items():
            request = Request(**{name: record[name] for name in Request.__dataclass_fields__})
            try:
                kept[stream] = now = self._grant(request, resources, kept)
            except RefusedError as error:
                changed.append({"kind": "stream", "event": "lost", "stream": stream, "why": str(error)})
                continue
            if any(now[name] != record[name] for name in ("offset_ns", "via", "base_time_ns")):
                changed.append({**now, "kind": "stream", "event": "moved"})
        if before:
            self._engine.journal.remember(_FACT, kept)
        return changed

    def _read(self) -> dict[str, Record]:
        found: dict[str, Record] = self._engine.journal.fact(_FACT) or {}
        return found

    def _grant(self, request: Request, resources: Resources, granted: dict[str, Record]) -> Record:
        via = request.interface or self._engine.kernel.interface_towards(request.destination)
        if ("link", via) not in resources:
            raise RefusedError(f"interface: there is no interface {via}")
        vlan = resources.get(("vlan", via))
        below = vlan["interface"] if vlan else via
        schedule = resources.get(("taprio", below))
        if schedule is None or FOREIGN in schedule:
            raise RefusedError(f"{request.destination} is reached by {below}, which has no schedule: apply one first")
        traffic_class = schedule["map"][request.priority]
        headers = _IP_BYTES[ipaddress.ip_address(request.destination).version] + _UDP_BYTES
        mtu = resources["link", via]["mtu"]
        if request.size_bytes + headers > mtu:
            raise RefusedError(
                f"size: found {request.size_bytes} bytes, accepted {mtu - headers}: MTU of {via} is {mtu}"
            )
        speed = request.speed_mbps or capabilities.speed_mbps(below)
        if speed is None:
            raise RefusedError(f"speed: {below} does not tell its speed; give one with the request")
        length = wire_ns(request.size_bytes + headers, speed, tagged=vlan is not None)
        need = Need(request.period_ns, request.size_bytes, traffic_class, request.deadline_ns)
        others = [Grant(other["offset_ns"], other["period_ns"], other["length_ns"])
                  for other in granted.values() if other["below"] == below]  # fmt: skip
        grant = admit(need, schedule, length, others)
        count, first_queue = schedule["queues"][traffic_class]
        etf = resources.get(("etf", below, first_queue))
        return {
            "kind": "grant", **request.__dict__, "via": via, "below": below, "pcp": _pcp(vlan, request.priority),
            "traffic_class": traffic_class, "base_time_ns": schedule["base_time"],
            "cycle_time_ns": schedule["cycle_time"], "offset_ns": grant.offset_ns, "length_ns": length,
            "first_launch_ns": clock.next_instant(
                schedule["base_time"] + grant.offset_ns, request.period_ns, clock.tai_ns() + _AHEAD_NS
            ),
            "launch_time": etf is not None, "delta_ns": etf["delta"] if etf else None, "queues": count,
        }  # fmt: skip


def _pcp(vlan: Value | None, priority: int) -> int | None:
    """What a switch sees; without a VLAN tag nothing."""
    return None if vlan is None else dict(map(tuple, vlan["egress"])).get(priority, 0)
