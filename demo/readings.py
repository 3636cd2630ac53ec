#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Readings of this machine by psutil, one JSON object a line, 1000 a second.

    {"kind":"reading","ts_ns":1735689600000000000,"metric":"memory.available_bytes","value":24746860544}

The sources (processors, interrupts, memory, network, disks, load) are read in turn, each when the line before its first
one has gone out, so every value is at most a few dozen milliseconds old; `ts_ns` is when it was read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Reading = tuple[str, int | float]

BUSY_WINDOW_NS: Final = 1_000_000_000
MAX_INTERFACES: Final = 4  # a host with containers can have hundreds


class Processors:
    """Share of time that each processor was busy, over the last one to two seconds; at first, since it was started."""

    def __init__(self) -> None:
        self._since_ns = time.monotonic_ns()
        self._newer = self._times()
        self._older = [(0.0, 0.0)] * len(self._newer)

    @staticmethod
    def _times() -> list[tuple[float, float]]:
        """Busy and total seconds of each processor."""
        return [(sum(each) - each.idle - each.iowait, sum(each)) for each in psutil.cpu_times(percpu=True)]

    def __call__(self) -> Iterator[Reading]:
        now = self._times()
        if time.monotonic_ns() - self._since_ns >= BUSY_WINDOW_NS:
            self._older, self._newer = self._newer, now
            self._since_ns = time.monotonic_ns()
        for number, (old, new) in enumerate(zip(self._older, now, strict=False)):  # a processor can be taken offline
            total = new[1] - old[1]
            yield f"cpu.{number}.busy_percent", round(100 * (new[0] - old[0]) / total, 1) if total > 0 else 0.0


def interrupts() -> Iterator[Reading]:
    """Counts since the machine was started."""
    stats = psutil.cpu_stats()
    yield "interrupts.count", stats.interrupts
    yield "interrupts.soft_count", stats.soft_interrupts
    yield "context_switches.count", stats.ctx_switches


def memory() -> Iterator[Reading]:
    stats = psutil.virtual_memory()
    yield "memory.available_bytes", stats.available
    yield "memory.used_bytes", stats.used
    yield "memory.cached_bytes", stats.cached
    yield "memory.active_bytes", stats.active


def network() -> Iterator[Reading]:
    """Counters of the interfaces that carry most; none of those that carry nothing."""
    found = {name: each for name, each in psutil.net_io_counters(pernic=True).items() if each.packets_recv}
    for name, stats in sorted(found.items(), key=lambda item: -item[1].packets_recv)[:MAX_INTERFACES]:
        yield f"network.{name}.received_bytes", stats.bytes_recv
        yield f"network.{name}.sent_bytes", stats.bytes_sent
        yield f"network.{name}.received_packets", stats.packets_recv
        yield f"network.{name}.sent_packets", stats.packets_sent


def disks() -> Iterator[Reading]:
    """Counters of the disk that carries most; there may be none."""
    found = psutil.disk_io_counters(perdisk=True) or {}
    for name, stats in sorted(found.items(), key=lambda item: -(item[1].read_bytes + item[1].write_bytes))[:1]:
        yield f"disk.{name}.read_bytes", stats.read_bytes
        yield f"disk.{name}.written_bytes", stats.write_bytes


def load() -> Iterator[Reading]:
    one, five, _ = psutil.getloadavg()
    yield "load.1min", round(one, 2)
    yield "load.5min", round(five, 2)


def readings() -> Iterator[bytes]:
    """Lines without end, each read when it is asked for."""
    sources: list[Callable[[], Iterator[Reading]]] = [Processors(), interrupts, memory, network, disks, load]
    while True:
        for source in sources:
            ts_ns = time.time_ns()
            for metric, value in source():
                record = {"kind": "reading", "ts_ns": ts_ns, "metric": metric, "value": value}
                yield json.dumps(record, separators=(",", ":")).encode() + b"\n"


def emit(rate: float, count: int | None) -> None:
    """Write lines to stdout, line number n at start + n/rate: late lines go out at once, and nothing drifts."""
    start = time.monotonic()
    for number, line in enumerate(readings()):
        if number == count:
            return
        ahead = start + number / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        os.write(sys.stdout.fileno(), line)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=1000, metavar="N", help="lines a second (default: 1000)")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many lines (default: never)")
    options = parser.parse_args()
    if options.rate <= 0:
        parser.error(f"--rate: found {options.rate:g}, accepted more than 0")
    try:
        emit(options.rate, options.count)
    except (BrokenPipeError, KeyboardInterrupt):
        # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
