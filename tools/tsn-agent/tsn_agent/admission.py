# SPDX-License-Identifier: Apache-2.0
"""Launch times for a stream: where in the cycles of a gate control list its frames have a place of their own.

Pure: a need, the schedule of the interface, and what others have been granted come in; a grant, or the reason why there
is none, comes out. Times are offsets in ns from the schedule's base time (IEEE 802.1Q-2022 8.6.8.4).

What must hold of a grant, for every frame of the stream: it lies in the windows of its traffic class with its whole
length on the wire, and it overlaps with no frame of another stream that was granted on the same interface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from libqos.codec.rtnl.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tsn_agent.wanted import Value

# Preamble 7, start 1, frame check 4, gap 12 (IEEE 802.3-2022 3.1.1, 4.4.2); header 14, tag 4.
WIRE_BYTES: Final = 7 + 1 + 4 + 12
HEADER_BYTES: Final = 14
TAG_BYTES: Final = 4
MIN_FRAME_BYTES: Final = 60
FOREVER: Final = 1 << 62  # the end of a window that never ends
MAX_INSTANCES: Final = 10_000  # of a stream within a cycle, or cycles within its period


@dataclass(frozen=True, slots=True)
class Need:
    """What an application asks for: `size_bytes` of each period is the frame's payload with its IP and UDP headers."""

    period_ns: int
    size_bytes: int
    traffic_class: int
    deadline_ns: int  # from the beginning of the period to the end of the frame


@dataclass(frozen=True, slots=True)
class Grant:
    """A place: the frame begins `offset_ns` into each period and takes `length_ns` on the wire."""

    offset_ns: int
    period_ns: int
    length_ns: int


def wire_ns(size_bytes: int, speed_mbps: int, *, tagged: bool) -> int:
    """How long a frame with so much payload is on the wire, rounded up."""
    frame = max(MIN_FRAME_BYTES, size_bytes + HEADER_BYTES + TAG_BYTES * tagged) + WIRE_BYTES
    return -(-frame * 8 * 1000 // speed_mbps)


def windows(schedule: Value, traffic_class: int) -> list[tuple[int, int]]:
    """When the gate of a class is open: [begin, end) within the cycle; what joins over the cycle's end is one window,
    which then ends beyond it."""
    result: list[tuple[int, int]] = []
    begin, cycle = 0, schedule["cycle_time"]
    entries = schedule["sched_entries"]
    for index, (_, mask, interval) in enumerate(entries):
        # what is left of the cycle belongs to the last entry
        end = cycle if index == len(entries) - 1 else min(begin + interval, cycle)
        if mask >> traffic_class & 1 and begin < end:
            if result and result[-1][1] == begin:
                result[-1] = result[-1][0], end
            else:
                result.append((begin, end))
        begin = end
    if result == [(0, cycle)]:
        return [(0, FOREVER)]
    if len(result) > 1 and result[0][0] == 0 and result[-1][1] == cycle:
        first = result.pop(0)
        result[-1] = result[-1][0], cycle + first[1]
    return result


def admit(need: Need, schedule: Value, length_ns: int, granted: Iterable[Grant]) -> Grant:
    """The earliest place in the period. Raises RefusedError, which says what would have to be different."""
    cycle = schedule["cycle_time"]
    if need.period_ns % cycle and cycle % need.period_ns:
        raise RefusedError(
            f"period: found {need.period_ns} ns, accepted a multiple or a divisor of the schedule's cycle, {cycle} ns"
        )
    instances = max(1, cycle // need.period_ns)
    if max(instances, need.period_ns // cycle) > MAX_INSTANCES:
        raise RefusedError(f"period: found {need.period_ns} ns, accepted at most {MAX_INSTANCES} to a cycle or back")
    gates = windows(schedule, need.traffic_class)
    longest = max((end - begin for begin, end in gates), default=0)
    if length_ns > need.period_ns:
        raise RefusedError(f"size: a frame takes {length_ns} ns, longer than the period of {need.period_ns} ns")
    if length_ns > longest:
        raise RefusedError(
            f"size: a frame takes {length_ns} ns, and the longest window of traffic class {need.traffic_class} is "
            f"{longest} ns"
        )
    others = list(granted)
    latest = min(need.deadline_ns, need.period_ns) - length_ns if need.deadline_ns else need.period_ns - 1
    refused = "window"
    for offset in _candidates(need, cycle, gates, others, latest):
        if not all(_fits((offset + n * need.period_ns) % cycle, length_ns, gates, cycle) for n in range(instances)):
            continue
        refused = "others"
        grant = Grant(offset, need.period_ns, length_ns)
        if not any(overlap(grant, other) for other in others):
            return grant
    if refused == "others":
        raise RefusedError(
            f"no room: every place of {length_ns} ns in the windows of traffic class {need.traffic_class} up to the "
            f"deadline is taken by the {len(others)} streams there"
        )
    deadline = f" and the deadline of {need.deadline_ns} ns" if need.deadline_ns else ""
    raise RefusedError(
        f"no window: with a period of {need.period_ns} ns{deadline} some frame would meet a closed gate of traffic "
        f"class {need.traffic_class}"
    )


def _candidates(
    need: Need, cycle: int, gates: list[tuple[int, int]], others: list[Grant], latest: int
) -> Iterator[int]:
    """Where the earliest place can begin, in ascending order: where a window begins, or where another's frame ends."""
    base = max(cycle, need.period_ns)
    begins = {begin % need.period_ns for begin, _ in gates} if need.period_ns < cycle else {
        begin + n * cycle for begin, _ in gates for n in range(need.period_ns // cycle)
    }  # fmt: skip
    begins.add(0)
    for other in others:
        end = other.offset_ns + other.length_ns
        step = math.gcd(other.period_ns, need.period_ns)  # its frames fall on these places of our period
        begins.update((end + n * step) % need.period_ns for n in range(min(base // step, MAX_INSTANCES)))
    for offset in sorted(begins):
        if offset <= latest:
            yield offset


def _fits(begin: int, length: int, gates: list[tuple[int, int]], cycle: int) -> bool:
    return any(start <= at and at + length <= end for start, end in gates for at in (begin, begin + cycle))


def overlap(one: Grant, other: Grant) -> bool:
    """Whether two periodic intervals ever meet: they do if their distance modulo the greatest common divisor of the
    periods is less than either's length."""
    step = math.gcd(one.period_ns, other.period_ns)
    distance = (other.offset_ns - one.offset_ns) % step
    return distance < one.length_ns or step - distance < other.length_ns
