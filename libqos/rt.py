# SPDX-License-Identifier: Apache-2.0
"""What a thread asks of the kernel: scheduling class, CPUs, locked memory (libqos/core/rt.h).

Each function concerns the calling thread (memory: the process) and raises RtError when refused, with a message that
says what to do. A refusal is not fatal to a tool: it warns once and goes on without.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from libqos._core import ffi, lib
from libqos.errors import QosError


class RtError(QosError, OSError):
    """The kernel refused; the message says why and what to do."""


class SchedulingClass(IntEnum):
    """Scheduling classes of sched(7). FIFO and RR are real time and take a priority of 1 to 99."""

    OTHER = lib.QOS_RT_OTHER
    BATCH = lib.QOS_RT_BATCH
    IDLE = lib.QOS_RT_IDLE
    FIFO = lib.QOS_RT_FIFO
    RR = lib.QOS_RT_RR


def explain(request: int, error: int) -> str:
    """What to do about `error` (an errno) of a request (`_core.lib.QOS_RT_SCHEDULER`, ...)."""
    text: bytes = ffi.string(lib.qos_rt_explain(request, error))
    return text.decode()


def _check(result: int, request: int) -> int:
    if result < 0:
        raise RtError(-result, explain(request, result))
    return result


def set_scheduler(scheduling_class: SchedulingClass, priority: int = 0) -> None:
    """Set class and priority of the calling thread. Raises RtError (EPERM, EINVAL)."""
    _check(lib.qos_rt_set_scheduler(scheduling_class, priority), lib.QOS_RT_SCHEDULER)


def get_scheduler() -> tuple[SchedulingClass, int]:
    """Class and priority of the calling thread. Raises RtError (ENOTSUP) for SCHED_DEADLINE."""
    scheduling_class: Any = ffi.new("enum qos_rt_class *")
    priority = ffi.new("int *")
    _check(lib.qos_rt_get_scheduler(scheduling_class, priority), lib.QOS_RT_SCHEDULER)
    return SchedulingClass(scheduling_class[0]), int(priority[0])


def set_affinity(cpus: Iterable[int]) -> None:
    """Run the calling thread on these CPUs only. Raises RtError (EINVAL) if none of them can be used."""
    wanted = list(cpus)
    _check(lib.qos_rt_set_affinity(ffi.new("uint32_t[]", wanted), len(wanted)), lib.QOS_RT_AFFINITY)


def get_affinity() -> list[int]:
    """The CPUs that the calling thread may run on, ascending."""
    cpus = ffi.new("uint32_t[]", int(lib.QOS_RT_CPU_MAX))
    count = _check(lib.qos_rt_get_affinity(cpus, lib.QOS_RT_CPU_MAX), lib.QOS_RT_AFFINITY)
    return [int(cpus[index]) for index in range(count)]


def lock_memory() -> None:
    """Keep the memory of the process in RAM, now and later. Raises RtError (EPERM, ENOMEM); then nothing is locked."""
    _check(lib.qos_rt_lock_memory(), lib.QOS_RT_MEMORY)


def unlock_memory() -> None:
    """Undo `lock_memory`."""
    _check(lib.qos_rt_unlock_memory(), lib.QOS_RT_MEMORY)


def set_name(name: str) -> None:
    """Name the calling thread, at most 15 bytes. Raises RtError (ENAMETOOLONG)."""
    _check(lib.qos_rt_set_name(name.encode()), lib.QOS_RT_NAME)


def set_timer_slack(slack_ns: int) -> None:
    """Let timers of the calling thread fire at most this late for the sake of power; 1 ns or more. Raises RtError."""
    _check(lib.qos_rt_set_timer_slack(slack_ns), lib.QOS_RT_TIMER_SLACK)


def set_slice(slice_ns: int) -> None:
    """Let the calling thread, of a fair class, run this long before another's turn comes; 100 µs to 100 ms. One that
    asks for little is let in soon when it wakes (EEVDF; without effect before Linux 6.12). Raises RtError."""
    _check(lib.qos_rt_set_slice(slice_ns), lib.QOS_RT_SLICE)
