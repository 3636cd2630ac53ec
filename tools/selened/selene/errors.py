# SPDX-License-Identifier: Apache-2.0
"""What can go wrong: one exception type, and two that callers often tell apart."""

from __future__ import annotations

import errno
import os
from typing import Final

from libqos.errors import QosError
from selene._selene import ffi, lib

FULL: Final = "no room now: sinks are behind (the pool is empty, a ring is full, or there is no credit)"


class SeleneError(QosError, OSError):
    """A call of libselene failed: `errno` is its number, the text says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class SeleneAgainError(SeleneError, BlockingIOError):
    """EAGAIN: it would have to wait, and must not; or a best-effort source found the transmit pool empty."""


class SeleneTimeoutError(SeleneError, TimeoutError):
    """ETIMEDOUT: nothing arrived in time."""


_TYPES: Final = {errno.EAGAIN: SeleneAgainError, errno.ETIMEDOUT: SeleneTimeoutError}


def failure(code: int, text: str | None = None) -> SeleneError:
    """The exception for a negative result. Without `text` it is what libselene says of this thread's last failure; give
    one for results that it says nothing about."""
    if text is None:
        text = ffi.string(lib.selene_last_error()).decode(errors="replace") or os.strerror(-code)
    return _TYPES.get(-code, SeleneError)(-code, text)


def closed(what: str) -> SeleneError:
    """The exception for the use of something that is closed."""
    return SeleneError(errno.EBADF, f"the {what} is closed")
