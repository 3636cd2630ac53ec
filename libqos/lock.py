# SPDX-License-Identifier: Apache-2.0
"""One daemon per socket: a lock that the kernel lets go when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from libqos.errors import QosError

if TYPE_CHECKING:
    from pathlib import Path


class LockError(QosError):
    """Another daemon holds the lock."""


class Lock:
    """Holds `path`, with our process id in it."""

    def __init__(self, path: Path, serves: Path, *, name: str = "process") -> None:
        """`serves`: the socket; `name`: what the holder is, for messages. Raises LockError naming the holder, or why
        the file cannot be made."""
        self.path = path
        while True:
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as failure:
                raise LockError(f"{path}: {failure.strerror}; give --socket in a directory of yours") from failure
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(self._fd)
                raise LockError(
                    f"{serves}: another {name} (pid {holder}) serves this socket; stop it, or give another --socket"
                ) from None
            if self._current():
                break
            os.close(self._fd)  # its last holder removed the file between our open and our lock
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _current(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        return False

    def release(self) -> None:
        """Remove the file and let go."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._fd)
