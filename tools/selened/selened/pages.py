# SPDX-License-Identifier: Apache-2.0
"""The counters that a client keeps in its session page, read for reports.

A client writes them, so they are display only: nothing is decided by them."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from selened.wire import MAX_ENDPOINTS, ffi, lib, numbers

_F_SEAL_SHRINK: Final = 2
_SIZE: Final[int] = lib.SELENE_PAGE_SIZE
_COUNTERS: Final[int] = lib.SELENE_PAGE_COUNTERS
_EACH: Final[int] = ffi.sizeof("struct selene_counters")

SOURCE_COUNTERS: Final = ("messages", "bytes", "datagrams", "dropped", "dropped_slow", "failed", "again")
SINK_COUNTERS: Final = (
    "messages",
    "bytes",
    "datagrams",
    "lost",
    "duplicated",
    "reordered",
    "dropped",
    "refused",
    "edge_dropped",
)


class SessionPage:
    """A session page, mapped read-only."""

    def __init__(self, fd: int) -> None:
        """Takes `fd`. Raises OSError or ValueError when it is no page that can be read safely."""
        try:
            # Without the seal its owner could truncate it, and reading it would kill us (SIGBUS).
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _F_SEAL_SHRINK:
                raise ValueError("the session page is not sealed")
            if os.fstat(fd).st_size < _SIZE:
                raise ValueError("the session page is too small")
            self._map = mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)

    def counters(self, index: int, names: tuple[str, ...]) -> dict[str, int]:
        """Counters of the endpoint at `index` of the page."""
        if not 0 <= index < MAX_ENDPOINTS:
            return {}
        at = _COUNTERS + index * _EACH
        row = ffi.new("struct selene_counters *")
        ffi.memmove(row, self._map[at : at + _EACH], _EACH)
        return {name: int(getattr(row, name)) for name in names}

    def faults(self) -> dict[str, int]:
        """What was done to the session's datagrams on purpose."""
        head = ffi.new("struct selene_page *")
        ffi.memmove(head, self._map[: ffi.sizeof("struct selene_page")], ffi.sizeof("struct selene_page"))
        return numbers(head.fault)

    def close(self) -> None:
        """Unmap."""
        self._map.close()
