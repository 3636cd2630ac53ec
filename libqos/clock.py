# SPDX-License-Identifier: Apache-2.0
"""Clocks in nanoseconds, and sleeping until a deadline (libqos/core/clock.h).

>>> from libqos import clock
>>> late_ns = clock.sleep_until(clock.monotonic_ns() + 1_000_000, clock.MONOTONIC)
"""

import os
import time
from types import TracebackType
from typing import Final, Self

from libqos._core import ffi, lib
from libqos.errors import QosError

REALTIME: Final = time.CLOCK_REALTIME
MONOTONIC: Final = time.CLOCK_MONOTONIC
TAI: Final = time.CLOCK_TAI
SPIN_DEFAULT_NS: Final[int] = lib.QOS_CLOCK_SPIN_DEFAULT_NS

_EINTR: Final = -4


class ClockError(QosError, OSError):
    """A clock cannot be read; `errno` says why."""


def _check(result: int, what: str) -> int:
    if result < 0:
        raise ClockError(-result, f"{what}: {os.strerror(-result)}")
    return result


def realtime_ns() -> int:
    """Unix time in ns."""
    return int(lib.qos_clock_realtime_ns())


def tai_ns() -> int:
    """TAI in ns since 1970-01-01 TAI; equal to `realtime_ns` while the kernel has not been told the offset."""
    return int(lib.qos_clock_tai_ns())


def monotonic_ns() -> int:
    """Ns since the start of the system, never stepped."""
    return int(lib.qos_clock_monotonic_ns())


def read_ns(clockid: int) -> int:
    """Time of any clock, by its id (`REALTIME`, `Phc.clockid`, ...). Raises ClockError."""
    now = ffi.new("uint64_t *")
    _check(lib.qos_clock_read(clockid, now), f"clock {clockid}")
    return int(now[0])


def next_instant(begin_ns: int, period_ns: int, least_ns: int) -> int:
    """The first of begin, begin + period, ... that is not before `least_ns`; all of one clock."""
    return begin_ns if begin_ns >= least_ns else begin_ns + -((begin_ns - least_ns) // period_ns) * period_ns


def sleep_until(deadline_ns: int, clockid: int = MONOTONIC, spin_ns: int = SPIN_DEFAULT_NS) -> int:
    """Sleep until `deadline_ns` on a clock and return the lateness in ns, 0 or more.

    The last `spin_ns` are spun, without the interpreter lock (0: never spin, as simulated time needs it). Signal
    handlers run while it sleeps; what they raise ends it. Raises ClockError for an unknown clock.
    """
    while (late := lib.qos_clock_sleep_until(clockid, max(0, deadline_ns), spin_ns)) == _EINTR:
        pass  # the interpreter ran the handler on return from the call
    return _check(int(late), f"clock {clockid}")


class Phc:
    """A PTP hardware clock, by device path, open for reading.

    >>> with Phc("/dev/ptp0") as phc:  # doctest: +SKIP
    ...     phc.now_ns()
    """

    def __init__(self, device: str) -> None:
        clockid = ffi.new("int32_t *")
        opened = lib.qos_clock_phc_open(os.fsencode(device), clockid)
        self._fd = _check(opened, f"{device} cannot be used as a PTP hardware clock")
        self.device = device
        self.clockid = int(clockid[0])

    def now_ns(self) -> int:
        """Time of the clock. Raises ClockError when it has gone or is closed."""
        return read_ns(self.clockid)

    def close(self) -> None:
        """Close the device; closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.clockid = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
