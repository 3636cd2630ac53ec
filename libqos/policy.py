# SPDX-License-Identifier: Apache-2.0
"""The one QoS class that the levels of every tool map onto, and the only place where they are mapped.

Traffic class, PCP, DSCP and SO_PRIORITY belong together:
- traffic class ↔ PCP is the recommended mapping of IEEE 802.1Q-2018, 8.6.6, table 8-5, for eight queues: priorities 2
  to 7 have the class of their number, and priority 1 (background) stands below priority 0 (best effort).
- DSCP follows RFC 4594 (service classes) and RFC 2474, 4.2.2 (class selectors): of the code points that RFC 4594 gives
  for the kind of traffic, the one whose upper three bits are the PCP, so that a bridge that derives the priority from
  the IP header comes to the same class. RFC 8622's LE (1) would suit class 0 too, but lacks that property.
- SO_PRIORITY is the PCP: with the identity as VLAN egress map (`egress-qos-map 0:0 1:1 …`) and table 8-5 as taprio
  `map`, one number serves both. Set it after IP_TOS, which overwrites it (Linux `ip(7)`); above 6 it needs
  CAP_NET_ADMIN (`socket(7)`).

Where the names come from: SELENE's stream policies (thesis 5.3.2), TEMPOS' SQ and BQ and the levels between (6.1; FIFO
80 and not the seeds' 99, which starves softirq threads), the gateway's data, monitoring and control with their delivery
semantics (4.1.1), and the TSN traffic classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from libqos.errors import InputError


class PolicyError(InputError, ValueError):
    """A QoS class that does not exist or contradicts itself. The text lists what is accepted."""


class Delivery(StrEnum):
    """Delivery semantic: the first two are SELENE's, the others those of brokers."""

    BEST_EFFORT = "best-effort"  # what does not fit is dropped, and counted
    RELIABLE = "reliable"  # the sender waits for credit
    AT_MOST_ONCE = "at-most-once"
    AT_LEAST_ONCE = "at-least-once"
    EXACTLY_ONCE = "exactly-once"


class Acceleration(StrEnum):
    """Datapath acceleration of a SELENE stream."""

    SLOW = "slow"  # the kernel's UDP is good enough
    FAST = "fast"  # the fastest technology that can be used


class Resources(StrEnum):
    """Resource use that a SELENE stream tolerates."""

    LOW = "low"  # sleep while waiting, no technology that polls
    ANY = "any"  # a core may be spent on polling


class Scheduler(StrEnum):
    """Linux scheduling class of the threads that handle the traffic (`sched(7)`)."""

    OTHER = "other"
    FIFO = "fifo"
    RR = "rr"


@dataclass(frozen=True, slots=True)
class TimeSensitivity:
    """A stream that is bound to gates: its traffic class, and when it sends in each period. Period 0: not periodic."""

    traffic_class: int
    period_ns: int = 0
    offset_ns: int = 0


# Index: traffic class. 802.1Q-2018 table 8-5 for eight queues, inverted.
PCP_OF_CLASS: Final = (1, 0, 2, 3, 4, 5, 6, 7)
CLASS_OF_PCP: Final = tuple(PCP_OF_CLASS.index(pcp) for pcp in range(8))
# CS1 low-priority data, DF standard, AF21 low-latency data, AF31 multimedia streaming, AF41 conferencing, EF telephony,
# CS6 network control, CS7 reserved for it (RFC 4594, figure 3).
DSCP_OF_CLASS: Final = (8, 0, 18, 26, 34, 46, 48, 56)

DSCP_NAMES: Final = MappingProxyType(
    {"DF": 0, "LE": 1, "EF": 46, "VA": 44}
    | {f"CS{n}": n << 3 for n in range(8)}
    | {f"AF{n}{drop}": (n << 3) + (drop << 1) for n in range(1, 5) for drop in range(1, 4)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QosClass:
    """What one kind of traffic gets in every layer. Made by `parse`, `named` or `dataclasses.replace`.

    Raises PolicyError when a value is out of range or two contradict each other.
    """

    name: str = "custom"
    traffic_class: int = 1
    pcp: int = 0
    dscp: int = 0
    so_priority: int = 0
    scheduler: Scheduler = Scheduler.OTHER
    priority: int = 0  # 1..99 under fifo and rr, 0 under other
    delivery: Delivery = Delivery.BEST_EFFORT
    deadline_ns: int | None = None  # a message older than this is late
    acceleration: Acceleration = Acceleration.SLOW
    resources: Resources = Resources.LOW
    time: TimeSensitivity | None = None

    def __post_init__(self) -> None:
        for key, (low, high) in _RANGES.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise PolicyError(f"QoS: {key}: found {value}, accepted {low} to {high}")
        if self.scheduler is Scheduler.OTHER and self.priority != 0:
            raise PolicyError(f"QoS: priority: found {self.priority}, accepted 0 with scheduler=other (or fifo | rr)")
        if self.scheduler is not Scheduler.OTHER and self.priority == 0:
            raise PolicyError(f"QoS: priority: found 0, accepted 1 to 99 with scheduler={self.scheduler}")
        if self.deadline_ns is not None and not 0 < self.deadline_ns < _MAX_NS:
            raise PolicyError(f"QoS: deadline: found {self.deadline_ns} ns, accepted more than 0 and less than 2^63 ns")
        if self.time is not None:
            self._check_time(self.time)

    def _check_time(self, time: TimeSensitivity) -> None:
        if time.traffic_class != self.traffic_class:
            found, accepted = time.traffic_class, self.traffic_class
            raise PolicyError(f"QoS: time: found class {found}, accepted that of traffic_class ({accepted})")
        if not 0 <= time.period_ns < _MAX_NS:
            raise PolicyError(f"QoS: period: found {time.period_ns} ns, accepted 0 to less than 2^63 ns")
        if time.offset_ns != 0 and not 0 <= time.offset_ns < time.period_ns:
            accepted_text = f"accepted less than the period ({time.period_ns} ns)"
            raise PolicyError(f"QoS: offset: found {time.offset_ns} ns, {accepted_text}")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works but hurts, one line each: cause and remedy. The tool that takes the class prints them."""
        if self.scheduler is not Scheduler.OTHER and self.priority == 99:
            return (
                f"QoS {self.name}: priority 99 is above the kernel's own threads (migration, watchdog) and starves "
                "softirq threads; 80 is as good for everything else",
            )
        return ()

    def to_text(self) -> str:
        """The class as text that `parse` reads back to an equal class (but for a name that is not in the table)."""
        base = CLASSES.get(self.name.lower(), DEFAULT)
        parts = [base.name]
        if any(getattr(self, key) != getattr(base, key) for key in _MARKS):
            # One of these brings the others along when it is parsed, so all are said.
            parts += [f"{key}={getattr(self, key)}" for key in _MARKS]
        for key in ("scheduler", "priority", "delivery", "acceleration", "resources"):
            if getattr(self, key) != getattr(base, key):
                parts.append(f"{key}={getattr(self, key)}")
        if self.deadline_ns != base.deadline_ns:
            parts.append("deadline=none" if self.deadline_ns is None else f"deadline={self.deadline_ns}ns")
        if self.time != base.time:
            if self.time is None:
                parts.append("time=none")
            else:
                parts.append(f"time={self.time.traffic_class}")
                parts += [f"period={self.time.period_ns}ns", f"offset={self.time.offset_ns}ns"]
        return ",".join(parts)

    def as_record(self) -> dict[str, object]:
        """The class as JSON values, for `explain` and for logs."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "time"},
            "time": dataclasses.asdict(self.time) if self.time is not None else None,
        }


_MAX_NS: Final = 1 << 63
_MARKS: Final = ("traffic_class", "pcp", "dscp", "so_priority")
_RANGES: Final = {
    "traffic_class": (0, 7), "pcp": (0, 7), "dscp": (0, 63), "so_priority": (0, 15), "priority": (0, 99),
}  # fmt: skip


def _of_class(name: str, traffic_class: int, **values: Any) -> QosClass:
    """A class with the PCP, DSCP and SO_PRIORITY that belong to its traffic class."""
    pcp = PCP_OF_CLASS[traffic_class]
    return QosClass(
        name=name, traffic_class=traffic_class, pcp=pcp, dscp=DSCP_OF_CLASS[traffic_class], so_priority=pcp, **values
    )


def _all_classes() -> dict[str, QosClass]:
    fifo = Scheduler.FIFO
    classes = [
        # SELENE, thesis 5.3.2: acceleration and resource use; time sensitivity is `time=`, `period=`, `offset=`.
        _of_class("slow", 1),
        _of_class("slow-any", 1, resources=Resources.ANY),
        _of_class("fast", 1, acceleration=Acceleration.FAST, resources=Resources.ANY),
        _of_class("fast-low", 1, acceleration=Acceleration.FAST),
        # TEMPOS, thesis 6.1.2.
        _of_class("SQ", 5, scheduler=fifo, priority=80, delivery=Delivery.RELIABLE),
        _of_class("BQ", 1),
        *(
            _of_class(f"Q{level}", 1 + -(-level // 30), scheduler=fifo, priority=level, delivery=Delivery.RELIABLE)
            for level in range(10, 71, 10)
        ),
        # OT gateway, thesis 4.1.1.
        _of_class("data", 1, delivery=Delivery.AT_LEAST_ONCE),
        _of_class("monitoring", 3, delivery=Delivery.EXACTLY_ONCE),
        _of_class("control", 5, delivery=Delivery.EXACTLY_ONCE),
        # TSN, 802.1Q traffic classes 0 to 7.
        *(_of_class(f"tc{n}", n, time=TimeSensitivity(n)) for n in range(8)),
    ]
    return {item.name.lower(): item for item in classes}


CLASSES: Final = MappingProxyType(_all_classes())
DEFAULT: Final = CLASSES["slow"]

_UNITS: Final = {"": 1, "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_DURATION: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([a-zµ]*)")
_KEYS: Final = (
    "traffic_class", "pcp", "dscp", "so_priority", "scheduler", "priority", "delivery", "deadline", "acceleration",
    "resources", "time", "period", "offset",
)  # fmt: skip
_CHOICES: Final[dict[str, type[StrEnum]]] = {
    "scheduler": Scheduler, "delivery": Delivery, "acceleration": Acceleration, "resources": Resources,
}  # fmt: skip
ACCEPTED: Final = f"a name ({', '.join(item.name for item in CLASSES.values())}), or key=value,… of {', '.join(_KEYS)}"


def named(name: str) -> QosClass:
    """A class by name, whatever the case. Raises PolicyError with the names there are."""
    found = CLASSES.get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.strip().lower(), CLASSES, n=1)
        hint = f" (did you mean {CLASSES[near[0]].name}?)" if near else ""
        raise PolicyError(f"QoS: found {name.strip()!r}{hint}, accepted {ACCEPTED}")
    return found


def parse(text: str) -> QosClass:
    """A class from `name`, `key=value,…`, or `name,key=value,…` (the name's class with changes), as in `--qos`.

    A new traffic class brings its PCP, DSCP and SO_PRIORITY unless they are given too; a new PCP brings its class.
    `time` is `none` or a traffic class; a `period` makes a stream time sensitive. Durations are `250us`, `1ms`, `2s`
    or plain nanoseconds. Raises PolicyError naming what was found and what is accepted."""
    if not isinstance(text, str):
        raise PolicyError(f"QoS: found {text!r}, accepted {ACCEPTED}")
    parts = [part.strip() for part in text.split(",")]
    base = DEFAULT
    if "=" not in parts[0]:
        base = named(parts.pop(0))
    given: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = key.replace("-", "_")
        if not equals:
            raise PolicyError(f"QoS: found {part!r} after the first comma, accepted key=value of {', '.join(_KEYS)}")
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise PolicyError(f"QoS: {key}: unknown key{hint}, accepted {', '.join(_KEYS)}")
        if key in given:
            raise PolicyError(f"QoS: {key}: found twice, accepted once")
        given[key] = _value(key, value)
    return _changed(base, given) if given else base


def _changed(base: QosClass, given: dict[str, Any]) -> QosClass:
    """`base` with the given values, and what follows from them."""
    changes = {key: given[key] for key in given if key not in ("deadline", "time", "period", "offset")}
    if "deadline" in given:
        changes["deadline_ns"] = given["deadline"]
    if isinstance(given.get("time"), int):
        changes.setdefault("traffic_class", given["time"])
    elif "pcp" in given:
        changes.setdefault("traffic_class", CLASS_OF_PCP[given["pcp"]] if given["pcp"] < 8 else 0)
    traffic_class = changes.get("traffic_class", base.traffic_class)
    if traffic_class != base.traffic_class and 0 <= traffic_class < 8:
        changes.setdefault("pcp", PCP_OF_CLASS[traffic_class])
        changes.setdefault("dscp", DSCP_OF_CLASS[traffic_class])
        changes.setdefault("so_priority", changes["pcp"])
    changes["time"] = _time(base, given, traffic_class)
    return dataclasses.replace(base, **changes)


def _time(base: QosClass, given: dict[str, Any], traffic_class: int) -> TimeSensitivity | None:
    timing = {f"{key}_ns": given[key] for key in ("period", "offset") if key in given}
    if "time" in given and given["time"] is None:
        if timing:
            raise PolicyError("QoS: time: found none together with period or offset, accepted a traffic class (0 to 7)")
        return None
    if base.time is not None:
        # What is left of the named class: its time sensitivity follows a changed traffic class.
        return dataclasses.replace(base.time, traffic_class=given.get("time", traffic_class), **timing)
    if "time" in given or timing:
        return TimeSensitivity(given.get("time", traffic_class), **timing)
    return None


def _value(key: str, text: str) -> Any:
    if key in _CHOICES:
        try:
            return _CHOICES[key](text.lower())
        except ValueError:
            raise PolicyError(f"QoS: {key}: found {text!r}, accepted {' | '.join(_CHOICES[key])}") from None
    if key == "deadline" and text == "none":
        return None
    if key in ("deadline", "period", "offset"):
        return duration_ns(text, f"QoS: {key}")
    if key == "time":
        if text == "none":
            return None
        text = text.lower().removeprefix("tc")
    if key == "dscp" and text.upper() in DSCP_NAMES:
        return DSCP_NAMES[text.upper()]
    if not re.fullmatch(r"[0-9]{1,4}", text):
        low, high = _RANGES["traffic_class" if key == "time" else key]
        also = ", or a name such as EF, AF41, CS6" if key == "dscp" else ", or none" if key == "time" else ""
        raise PolicyError(f"QoS: {key}: found {text!r}, accepted {low} to {high}{also}")
    return int(text)


def duration_ns(text: str, where: str = "duration") -> int:
    """Nanoseconds from `250us`, `1.5ms`, `2s` or plain nanoseconds, exactly. Raises PolicyError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        raise PolicyError(f"{where}: found {text!r}, accepted a time such as 250us, 1.5ms, 2s, or plain nanoseconds")
    whole, _, fraction = match[1].partition(".")
    unit = _UNITS[match[2]]
    part, rest = divmod(int(fraction or "0") * unit, int("1" + "0" * len(fraction)))
    if rest:
        raise PolicyError(f"{where}: found {text!r}, accepted whole nanoseconds")
    return int(whole) * unit + part
