# SPDX-License-Identifier: Apache-2.0
"""Each request changes the calling thread, or is refused with a remedy. What changes a thread has one of its own."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from libqos import rt
from libqos._core import lib

T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_fair_class_needs_no_privilege() -> None:
    def change() -> tuple[rt.SchedulingClass, int]:
        rt.set_scheduler(rt.SchedulingClass.BATCH)
        return rt.get_scheduler()

    assert in_thread(change) == (rt.SchedulingClass.BATCH, 0)
    assert rt.get_scheduler()[0] != rt.SchedulingClass.BATCH


@pytest.mark.needs_rt
def test_real_time_priority() -> None:
    def change() -> tuple[rt.SchedulingClass, int]:
        rt.set_scheduler(rt.SchedulingClass.FIFO, 10)
        return rt.get_scheduler()

    assert in_thread(change) == (rt.SchedulingClass.FIFO, 10)


def test_an_impossible_priority_is_refused() -> None:
    with pytest.raises(rt.RtError, match="1 to 99") as caught:
        rt.set_scheduler(rt.SchedulingClass.FIFO, 100)
    assert caught.value.errno == errno.EINVAL


def test_affinity() -> None:
    cpus = rt.get_affinity()
    assert cpus == sorted(os.sched_getaffinity(0))

    def change() -> list[int]:
        rt.set_affinity(cpus[-1:])
        return rt.get_affinity()

    assert in_thread(change) == cpus[-1:]
    with pytest.raises(rt.RtError, match="nproc"):
        rt.set_affinity([lib.QOS_RT_CPU_MAX])
    with pytest.raises(rt.RtError):
        rt.set_affinity([])


def test_memory_is_locked_or_the_refusal_has_a_remedy() -> None:
    child = os.fork()
    if child == 0:  # its own process: all later tests would run in locked memory
        status = 1
        try:
            rt.lock_memory()
            locked = Path("/proc/self/status").read_text(encoding="utf-8").split("VmLck:")[1].split()[0]
            status = 0 if int(locked) > 0 else 2
        except rt.RtError as error:
            status = 0 if "CAP_IPC_LOCK" in str(error) or "too little memory" in str(error) else 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_thread_name() -> None:
    def change() -> str:
        rt.set_name("qos-name")
        return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text(encoding="utf-8").strip()

    assert in_thread(change) == "qos-name"
    with pytest.raises(rt.RtError, match="15 bytes"):
        rt.set_name("sixteen-letters.")


def test_timer_slack() -> None:
    def change() -> None:
        rt.set_timer_slack(1000)

    in_thread(change)
    with pytest.raises(rt.RtError, match="1 ns or more"):
        rt.set_timer_slack(0)


def test_slice() -> None:
    def change() -> None:
        rt.set_slice(200_000)

    in_thread(change)
    with pytest.raises(rt.RtError, match="100 us to 100 ms"):
        rt.set_slice(1)


def test_every_refusal_is_explained() -> None:
    assert "CAP_SYS_NICE" in rt.explain(lib.QOS_RT_SCHEDULER, errno.EPERM)
    assert "CAP_IPC_LOCK" in rt.explain(lib.QOS_RT_MEMORY, -errno.EPERM)
    assert rt.explain(lib.QOS_RT_NAME, 12345)
