# SPDX-License-Identifier: Apache-2.0
"""Why a queueing discipline is refused, in a sentence that names the parameter.

The kernel says EINVAL for most of what is wrong, and takes some of what cannot work: gate masks of classes that there
are not, intervals beyond the cycle. `check_taprio` says so before it is asked; `explain` turns what it answers into a
sentence. Parameters are those of the plug-ins beside this file.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from libqos.codec.rtnl.common import MAX_CLASSES
from libqos.codec.rtnl.sched_taprio import FLAG_FULL_OFFLOAD, FLAG_TXTIME_ASSIST
from libqos.errors import QosError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_ENTRIES: Final = 400  # of a list: two have to fit into the 32 KiB in which the kernel shows them
MAX_INTERVAL_NS: Final = (1 << 32) - 1
MAX_CYCLE_NS: Final = (1 << 31) - 1
MAX_SDU_BYTES: Final = 65535
MAX_QUEUES: Final = 65535
CLOCK_TAI: Final = 11  # Linux takes others too, but etf below, and every PTP domain, count in TAI
COMMANDS: Final = {0: "set gates", 1: "set and hold MAC", 2: "set and release MAC"}


class RefusedError(QosError):
    """Parameters that cannot work, or that the kernel does not take."""

    exit_code = 2


def _refuse(parameter: str, found: object, accepted: str) -> RefusedError:
    return RefusedError(f"taprio: {parameter}: found {found}, accepted {accepted}")


def check_taprio(parameters: Mapping[str, Any], *, tx_queues: int | None = None) -> None:
    """Raise RefusedError for a schedule that cannot work. `tx_queues`: transmit queues of the interface, if known."""
    flags = parameters.get("flags", 0)
    if flags & ~(FLAG_TXTIME_ASSIST | FLAG_FULL_OFFLOAD) or flags == FLAG_TXTIME_ASSIST | FLAG_FULL_OFFLOAD:
        raise _refuse("flags", f"{flags:#x}", "0 (software), 0x1 (txtime-assist) or 0x2 (full offload)")
    clock = parameters.get("clockid")
    if flags & FLAG_FULL_OFFLOAD and clock is not None:
        raise _refuse("clockid", clock, "none with full offload: the device has its own clock")
    if not flags & FLAG_FULL_OFFLOAD and clock != CLOCK_TAI:
        raise _refuse("clockid", "none" if clock is None else clock, f"{CLOCK_TAI} (CLOCK_TAI)")
    delay = parameters.get("txtime_delay", 0)
    if delay and not flags & FLAG_TXTIME_ASSIST:
        raise _refuse("txtime_delay", delay, "none without txtime-assist (flags 0x1)")
    classes = parameters.get("num_tc")
    if classes is not None:
        _check_classes(classes, parameters.get("map", ()), parameters.get("queues", ()), tx_queues)
    _check_entries(parameters, classes)
    for index, size in enumerate(parameters.get("max_sdu", ())):
        if not 0 <= size <= MAX_SDU_BYTES:
            raise _refuse(f"max_sdu[{index}]", size, f"0 (any) to {MAX_SDU_BYTES} bytes")


def _check_classes(
    classes: int, priorities: Sequence[int], queues: Sequence[tuple[int, int]], tx_queues: int | None
) -> None:
    if tx_queues == 1:
        raise RefusedError(
            "taprio: the interface has one transmit queue, accepted two or more: ethtool -L (cards), numtxqueues (veth)"
        )
    most = min(MAX_CLASSES, tx_queues or MAX_CLASSES)
    if not 1 <= classes <= most:
        because = f", as many as the interface has transmit queues ({tx_queues})" if tx_queues else ""
        raise _refuse("num_tc", classes, f"1 to {most} traffic classes{because}")
    if len(priorities) > MAX_CLASSES:
        raise _refuse("map", f"{len(priorities)} priorities", f"at most {MAX_CLASSES}")
    for priority, of in enumerate(priorities):
        if not 0 <= of < classes:
            raise _refuse(f"map[{priority}]", f"class {of}", f"0 to {classes - 1} (num_tc is {classes})")
    if len(queues) != classes:
        raise _refuse("queues", f"those of {len(queues)} classes", f"count and offset of each of {classes} (num_tc)")
    free = 0
    for index, (count, offset) in enumerate(queues):
        if count < 1:
            raise _refuse(f"queues[{index}]", f"{count} queues", "one or more")
        if offset < 0 or offset + count > (tx_queues or MAX_QUEUES):
            accepted = f"within the {tx_queues} that the interface has" if tx_queues else f"within {MAX_QUEUES}"
            raise _refuse(f"queues[{index}]", f"{count}@{offset}", accepted)
        if offset < free:  # Linux compares with the next classes only, so that it takes no other order
            raise _refuse(f"queues[{index}]", f"offset {offset}", f"{free} or more: each queue once, ascending")
        free = offset + count


def _check_entries(parameters: Mapping[str, Any], classes: int | None) -> None:
    entries = parameters.get("sched_entries", ())
    if not 1 <= len(entries) <= MAX_ENTRIES:
        raise _refuse("sched_entries", f"{len(entries)} entries", f"1 to {MAX_ENTRIES}")
    total = 0
    for index, entry in enumerate(entries):
        command, mask, interval = entry if len(entry) == 3 else (0, *entry)
        where = f"sched_entries[{index}]"
        if command not in COMMANDS:
            raise _refuse(where, f"command {command}", ", ".join(f"{key} ({text})" for key, text in COMMANDS.items()))
        most = (1 << (classes or MAX_CLASSES)) - 1
        if not 0 <= mask <= most:
            named = f"the gates of {classes} classes" if classes else f"the gates of {MAX_CLASSES} classes"
            raise _refuse(where, f"gate mask {mask:#x}", f"0x0 to {most:#x}, {named}")
        if not 1 <= interval <= MAX_INTERVAL_NS:
            raise _refuse(where, f"an interval of {interval} ns", f"1 to {MAX_INTERVAL_NS} ns")
        total += interval
    cycle = parameters.get("cycle_time", 0) or total
    if total > cycle:
        raise _refuse("cycle_time", f"{cycle} ns, less than the {total} ns of all intervals", f"{total} ns or more")
    if cycle > MAX_CYCLE_NS:
        raise _refuse("cycle_time", f"{cycle} ns", f"{MAX_CYCLE_NS} ns at most")
    extension = parameters.get("cycle_time_extension", 0)
    if not 0 <= extension <= cycle:
        raise _refuse("cycle_time_extension", f"{extension} ns", f"0 to the cycle time, {cycle} ns")
    if parameters.get("base_time", 0) < 0:
        raise _refuse("base_time", parameters["base_time"], "0 or more, ns since 1970 of the schedule's clock")


# A word of what the kernel says (Linux 6.12; earlier ones are silent about some): the parameter, and what to do. The
# first that is found counts.
_SAYINGS: Final = (
    ("Multi-queue device is required", "the interface has one transmit queue: ethtool -L (cards), numtxqueues (veth)"),
    ("greater than number of HW queues", "num_tc is larger than the number of transmit queues of the interface"),
    ("Invalid traffic class in priority", "map names a traffic class that is not below num_tc"),
    ("exceed the", "queues go beyond the transmit queues of the interface"),
    ("overlap", "queues give one transmit queue to two classes, or do not ascend"),
    ("No queues for TC", "queues give a class none"),
    ("at least one entry", "sched_entries is empty"),
    ("Invalid interval", "an interval in sched_entries is shorter than the shortest frame at the link's speed"),
    ("'cycle_time' is too big", "cycle_time is longer than 2147483647 ns"),
    ("integer out of range", "cycle_time or cycle_time_extension is not 0 to 2147483647 ns"),
    ("mutually exclusive", "flags ask for txtime-assist and full offload at once"),
    ("cannot be specified for full offload", "clockid is not accepted with full offload: the device has its own clock"),
    ("Invalid 'clockid'", "clockid is not one that the kernel takes; CLOCK_TAI is 11"),
    ("Invalid clockid", "clockid has to be 11, CLOCK_TAI"),
    ("Specifying a 'clockid' is mandatory", "clockid is missing; CLOCK_TAI is 11"),
    ("'clockid' of a running schedule", "clockid cannot be changed while it runs: delete it first"),
    ("traffic mapping of a running schedule", "map and queues cannot be changed while it runs: delete it first"),
    ("flags of a running", "flags cannot be changed while it runs: delete it first"),
    ("txtime-delay can only", "txtime_delay needs txtime-assist (flags 0x1)"),
    ("max SDU exceeds", "max_sdu is larger than the interface's largest MTU"),
    ("Preemption only supported", "fp needs full offload (flags 0x2)"),
    ("does not support taprio offload", "the device cannot do full offload: flags 0x1 or 0"),
    ("does not support ETF offload", "the device cannot wait for launch times: offload off"),
    ("Delta must be positive", "delta has to be 0 or more, in ns"),
    ("Specified class not found", "parent is no class of the interface's queueing discipline"),
    ("Failed to find specified qdisc", "parent names a queueing discipline that the interface does not have"),
)  # fmt: skip
_CODES: Final = {
    errno.EPERM: "CAP_NET_ADMIN is missing: run as root, or give the unit AmbientCapabilities=CAP_NET_ADMIN",
    errno.ENODEV: "there is no such interface",
    errno.ENOENT: "the kernel has no such queueing discipline, or parent names one that is not there",
    errno.EOPNOTSUPP: "kernel or device cannot do that",
    errno.EEXIST: "another queueing discipline has that place: replace it, or delete it first",
}


def explain(kind: str, interface: str, code: int, said: str) -> RefusedError:
    """The sentence for a refusal: `code` is the errno and `said` the text of the kernel's answer (extended ACK)."""
    for words, meaning in _SAYINGS:
        if words in said:
            return RefusedError(f"{interface}: {kind}: {meaning} (kernel: {said})")
    name = errno.errorcode.get(code, str(code))
    if (meaning_of_code := _CODES.get(code)) is not None:
        return RefusedError(f"{interface}: {kind}: {meaning_of_code} ({name}: {said})")
    return RefusedError(f"{interface}: {kind}: the kernel refuses it, and says {said} ({name})")
