# SPDX-License-Identifier: Apache-2.0
"""Mergeable log-linear histogram of latencies (libqos/core/hist.h).

Count, minimum, maximum and mean are exact; a quantile is off by at most 1/128 of its value. One writer; any number of
readers, also in other processes, when the histogram lies in shared memory (`Histogram.attach`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from libqos._core import ffi, lib
from libqos.errors import QosError


class HistError(QosError, ValueError):
    """The memory is no histogram, or a value does not fit."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What belongs together, from one snapshot. Units are those of the values; all 0 when `count` is."""

    count: int
    min: int
    p50: int
    p90: int
    p99: int
    p999: int
    max: int
    mean: float
    stddev: float


class Histogram:
    """A histogram of unsigned 64-bit values: private memory, or, by `create_in` and `attach`, somebody's buffer."""

    __slots__ = ("_hist", "_memory")

    def __init__(self) -> None:
        self._memory: Any = ffi.new("uint64_t[]", (self.size_bytes() + 7) // 8)
        self._hist: Any = ffi.cast("struct qos_hist *", self._memory)
        lib.qos_hist_init(self._hist)

    @staticmethod
    def size_bytes() -> int:
        """Bytes of memory that a histogram takes."""
        return int(lib.qos_hist_size())

    @classmethod
    def _over(cls, buffer: Any, writable: bool) -> Self:
        made = cls.__new__(cls)
        made._memory = ffi.from_buffer(buffer, require_writable=writable)
        if len(made._memory) < cls.size_bytes():
            raise HistError(f"a histogram takes {cls.size_bytes()} bytes, the buffer has {len(made._memory)}")
        if int(ffi.cast("uintptr_t", made._memory)) % 8 != 0:
            raise HistError("the memory of a histogram must be aligned to 8 bytes")
        made._hist = ffi.cast("struct qos_hist *", made._memory)
        return made

    @classmethod
    def create_in(cls, buffer: Any) -> Self:
        """An empty histogram in a writable buffer (an mmap, say). Raises HistError if the buffer is too small."""
        made = cls._over(buffer, writable=True)
        lib.qos_hist_init(made._hist)
        return made

    @classmethod
    def attach(cls, buffer: Any) -> Self:
        """The histogram that another process keeps in this buffer, to read. Raises HistError if there is none."""
        made = cls._over(buffer, writable=False)
        if lib.qos_hist_check(made._hist, len(made._memory)) != 0:
            raise HistError("the memory holds no histogram of this version")
        return made

    def record(self, value: int) -> None:
        """Count one value, 0 to 2**64 - 1. Only the writer may. Raises HistError for any other value."""
        self.record_many((value,))

    def record_many(self, values: Iterable[int]) -> None:
        """Count values; all or, with HistError, none."""
        try:
            array = ffi.new("uint64_t[]", values if isinstance(values, list | tuple) else list(values))
        except OverflowError as error:
            raise HistError(f"a histogram takes values from 0 to 2**64 - 1: {error}") from None
        lib.qos_hist_record_many(self._hist, array, len(array))

    def merge(self, other: "Histogram") -> None:
        """Add what `other` holds; only the writer of this one may."""
        lib.qos_hist_merge(self._hist, other._hist)

    def snapshot(self) -> "Histogram":
        """A private copy, whose readings belong together."""
        copy = Histogram()
        lib.qos_hist_snapshot(copy._hist, self._hist)
        return copy

    def quantile(self, share: float) -> int:
        """The smallest value that `share` (0 to 1) of the records do not exceed, within 1/128; 0 when empty."""
        return int(lib.qos_hist_quantile(self._hist, share))

    def summary(self) -> Summary:
        """Count, extremes, quantiles, mean and standard deviation (of the population, from the buckets)."""
        out = ffi.new("struct qos_hist_summary *")
        if lib.qos_hist_summarize(self._hist, out) != 0:
            raise MemoryError
        return Summary(
            out.count, out.min, out.p50, out.p90, out.p99, out.p999, out.max, float(out.mean), float(out.stddev)
        )

    def __len__(self) -> int:
        """Records counted so far."""
        return int(lib.qos_hist_count(self._hist))
