# SPDX-License-Identifier: Apache-2.0
"""A SEQPACKET connection on asyncio, with descriptors.

What must hold: a peer that does not read costs at most `queue` packets, then it is cut off; every descriptor that
arrives is either taken or closed; nothing blocks the loop. To close what a stranger has passed can block: a TCP socket
that lingers, a file whose file system is a process of his. That is also so where the kernel closes it for us, since the
packet was not read or had more descriptors than we made room for. So all are taken in, and closed with care.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from array import array
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Self

from selened.wire import MAX_FDS, MAX_PACKET, RubbishError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RIGHTS_BYTES: Final = socket.CMSG_SPACE(253 * 4)  # SCM_MAX_FD: a packet has no more
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_SEND_BUFFER_BYTES: Final = 1 << 20


_slow: Final[SimpleQueue[int]] = SimpleQueue()


def _close_slow() -> None:
    while True:
        with contextlib.suppress(OSError):
            os.close(_slow.get())


def close_carefully(fd: int) -> None:
    """Close a descriptor that somebody else has passed, without waiting for anything."""
    what = os.readlink(f"/proc/self/fd/{fd}")  # asks no file system
    if what.startswith("socket:"):
        # family and type are given so that nobody asks for them: sockets of some families have no name
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd) as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    elif what.startswith(("anon_inode:", "net:")):
        os.close(fd)
    else:
        if not _closer.is_alive():
            _closer.start()
        _slow.put(fd)


_closer: Final = threading.Thread(target=_close_slow, name="closer", daemon=True)


def hang_up(sock: socket.socket) -> None:
    """Close a connection, and with care what waits in it unread."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.shutdown(socket.SHUT_RDWR)  # nothing is added
        while True:
            data, descriptors, _ = _receive(sock)
            descriptors.close()
            if not data and not len(descriptors):
                break
    sock.close()


def _receive(sock: socket.socket) -> tuple[bytes, Descriptors, int]:
    data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, Descriptors(fds), flags


class Descriptors:
    """Received descriptors. Those that nobody takes are closed with it."""

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._fds: list[int | None] = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def peek(self, index: int) -> int:
        """The descriptor at `index`, which stays ours. Raises IndexError."""
        fd = self._fds[index]
        if fd is None:
            raise IndexError(index)
        return fd

    def take(self, index: int) -> int:
        """The descriptor at `index`, which becomes the caller's to close. Raises IndexError."""
        fd = self.peek(index)
        self._fds[index] = None
        return fd

    def close(self) -> None:
        """Close what was not taken."""
        for fd in self._fds:
            if fd is not None:
                close_carefully(fd)
        self._fds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Connection:
    """One end of a connected SEQPACKET socket. One reader at a time."""

    def __init__(self, sock: socket.socket, *, queue: int = 256) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._limit = queue
        self._waiting: asyncio.Future[None] | None = None
        self.closed = False
        self.reason = ""  # why we cut it off, if we did

    @property
    def socket(self) -> socket.socket:
        return self._socket

    async def receive(self) -> tuple[bytes, Descriptors]:
        """The next packet with its descriptors; empty at the end of the connection. Raises RubbishError, OSError."""
        while not self.closed:
            try:
                data, descriptors, flags = _receive(self._socket)
            except BlockingIOError:
                await self._readable()
                continue
            except ConnectionResetError:
                break
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) > MAX_FDS:
                descriptors.close()
                raise RubbishError(f"found a packet of more than {MAX_PACKET} bytes or {MAX_FDS} descriptors")
            return data, descriptors
        return b"", Descriptors()

    async def _readable(self) -> None:
        self._waiting = self._loop.create_future()
        self._loop.add_reader(self._socket.fileno(), self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if not self.closed:
                self._loop.remove_reader(self._socket.fileno())

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet now, or as soon as the peer reads. A peer that does not read is cut off (`reason`)."""
        if self.closed:
            return
        if not self._queue:
            try:
                self._put(data, fds)
                return
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as failure:
                self._fail(failure)
                return
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif len(self._queue) >= self._limit:
            self.close(f"it left {len(self._queue)} packets unread: call the library more often")
            return
        self._queue.append((data, [os.dup(fd) for fd in fds]))

    def _put(self, data: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                self._put(data, fds)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as failure:
                self._fail(failure)
                return
            self._queue.popleft()
            for fd in fds:
                os.close(fd)
        self._loop.remove_writer(self._socket.fileno())

    def _fail(self, failure: OSError) -> None:
        gone = failure.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
        # What it sent before it went is still to be read; receive() comes to the end by itself.
        if gone:
            self._drop_queue()
        else:
            self.close(f"sending failed: {failure.strerror}")

    def _drop_queue(self) -> None:
        if self._queue:
            self._loop.remove_writer(self._socket.fileno())
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()

    def close(self, reason: str = "") -> None:
        """Close now; a waiting `receive` gets the end of the connection."""
        if self.closed:
            return
        self.reason = reason
        self._drop_queue()
        self._loop.remove_reader(self._socket.fileno())
        self.closed = True
        hang_up(self._socket)
        self._wake()
