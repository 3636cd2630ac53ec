# SPDX-License-Identifier: Apache-2.0
"""The datapath process: finding or starting it, and giving it orders.

What must hold: an order is answered or the process is taken for dead; a process that survived an earlier selened is
adopted, so that traffic goes on; a process that we give up is really gone before another is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from libqos.errors import QosError
from libqos.rpc import peer_of
from selened import wire
from selened.seqpacket import Connection, Descriptors
from selened.wire import RefusedError, RubbishError, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("selened.datapath")

_START_S: Final = 5.0
_ANSWER_S: Final = 5.0
_QUEUE: Final = 16384
_HAS_SOCKET: Final = 1  # bits of E_READY.flags
_CAN_RESUME: Final = 2


class DatapathError(QosError):
    """The datapath process cannot be had; the text says what to do."""


def program() -> str:
    """Where selened-dp is: $QOS_SELENED_DP, beside this program, or in $PATH. Raises DatapathError."""
    given = os.environ.get("QOS_SELENED_DP", "")
    beside = [Path(name).absolute().parent for name in (sys.argv[0], sys.executable) if "/" in name]
    for path in [given] if given else [str(place / "selened-dp") for place in beside]:
        if os.access(path, os.X_OK):
            return path
    if not given and (found := shutil.which("selened-dp")):
        return found
    raise DatapathError(
        f"selened-dp not found ({given or 'neither beside selened nor in $PATH'}): install it, or set QOS_SELENED_DP"
    )


class Datapath:
    """Our connection to the datapath process. `on_session_gone(session, error, text)` and `on_lost(reason)` are called
    from the loop; after `on_lost` this object is dead."""

    def __init__(
        self, path: Path, on_session_gone: Callable[[int, int, str], None], on_lost: Callable[[str], None]
    ) -> None:
        self.path = path
        self.adopted = False
        self.host = 0
        self.pid = 0
        self.version = ""
        self.sessions = 0  # alive when we connected
        self.has_socket = False
        self.can_resume = False
        self._on_session_gone = on_session_gone
        self._on_lost = on_lost
        self._connection: Connection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._number = 0
        self._closed_by_itself = False
        self._answers: dict[int, asyncio.Future[tuple[bytes, Descriptors]]] = {}
        self._reader: asyncio.Task[None] | None = None

    # ---- Start and end ----

    async def start(self, arguments: Sequence[str], successor_of: Datapath | None = None) -> None:
        """Adopt the process that listens at the path, or start one; as the successor of one that died always a new one,
        with the same ids. Raises DatapathError."""
        sock = None
        if successor_of is None:
            sock = self._dial()
        else:
            arguments = [*arguments, "--host", f"{successor_of.host:08x}"]
        self.adopted = sock is not None
        if sock is None:
            sock = await self._spawn(arguments)
        credentials = peer_of(sock)
        if credentials.uid not in (os.getuid(), 0):
            sock.close()
            raise DatapathError(f"{self.path}: belongs to user {credentials.uid}; remove it, or give another --socket")
        self.pid = credentials.pid
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(credentials.pid)
        self._connection = Connection(sock, queue=_QUEUE)
        self._reader = asyncio.create_task(self._read(self._connection))
        data, descriptors = await self._ask(wire.bare(lib.SELENE_O_HELLO, self._next()))
        descriptors.close()
        ready = wire.parse("selene_ready", data)
        self.host, self.version, self.sessions = ready.host, wire.text_of(ready.version), ready.sessions
        self.has_socket = bool(ready.flags & _HAS_SOCKET)
        self.can_resume = bool(ready.flags & _CAN_RESUME)

    def _dial(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(self.path))
        except OSError as failure:
            sock.close()
            if failure.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            raise DatapathError(f"{self.path}: {failure.strerror}; remove it, or give another --socket") from failure
        return sock

    async def _spawn(self, arguments: Sequence[str]) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        command = [program(), "--socket", os.fspath(self.path), *arguments]
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # A session of its own: a Ctrl-C in our terminal is for us, and we stop it in order.
            self._child = subprocess.Popen(
                [*command, "--ready-fd", str(theirs)], pass_fds=(theirs,), start_new_session=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as failure:
            os.close(ours)
            raise DatapathError(f"{command[0]}: {failure.strerror}") from failure
        finally:
            os.close(theirs)
        try:
            ready = await _read_byte(ours, _START_S)
        finally:
            os.close(ours)
        sock = self._dial() if ready else None
        if sock is None:
            status = self._child.poll()
            self._child.kill()
            self._child.wait()
            how = f"ended with status {status}" if status is not None else f"was not ready within {_START_S:g} s"
            raise DatapathError(f"{' '.join(command)}: {how}; what it said stands above")
        return sock

    async def stop(self) -> None:
        """Tell it to end, and wait until it has."""
        connection = self._connection
        if connection is not None and not connection.closed:
            self._on_lost = _nobody
            with contextlib.suppress(QosError, TimeoutError):
                await self._ask(wire.bare(lib.SELENE_O_STOP, self._next()), timeout=1.0)
        await self._finish()

    async def kill(self) -> None:
        """End it by force; for a process that does not answer."""
        self._on_lost = _nobody
        self._signal(signal.SIGKILL)
        await self._finish()

    async def _finish(self) -> None:
        if not await self._exited(2.0):
            self._signal(signal.SIGKILL)
            await self._exited(2.0)
        if self._child is not None:
            self._child.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def check(self) -> None:
        """Raises DatapathError when the connection is lost."""
        if self._connection is None or self._connection.closed:
            raise DatapathError("the datapath process is gone")

    @property
    def was_killed(self) -> bool:
        """Whether it ended by a SIGKILL that was not ours, which says nothing against the program."""
        return self._closed_by_itself and (self._child is None or self._child.returncode == -signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)

    async def _exited(self, timeout: float) -> bool:
        if self._pidfd < 0:
            return True
        return await _readable(self._pidfd, timeout)

    # ---- Orders ----

    def _next(self) -> int:
        self._number = self._number % 0xFFFFFFFF + 1
        return self._number

    async def order(
        self, struct: str, kind: int, fds: Sequence[int] = (), /, *, tolerate: Sequence[int] = (), **fields: object
    ) -> Descriptors:
        """Give an order and wait for S_OK; gives the descriptors that came with it. Raises RefusedError (unless its
        errno is in `tolerate`), or DatapathError when the process is gone."""
        data, descriptors = await self._ask(wire.build(struct, kind, self._next(), **fields), fds)
        if wire.header(data).type == lib.SELENE_S_ERROR:
            descriptors.close()
            answer = wire.parse("selene_error", data, tail="text")
            if answer.error not in tolerate:
                raise RefusedError(answer.error, wire.text_of(answer.text) or os.strerror(answer.error))
        return descriptors

    async def stats(self) -> tuple[dict[str, int], list[dict[str, int]]]:
        """What it did to datagrams on purpose; and what it counts, the totals first, then per session."""
        data, descriptors = await self._ask(wire.bare(lib.SELENE_O_STATS, self._next()))
        descriptors.close()
        if wire.header(data).type != lib.SELENE_E_STATS:
            raise DatapathError("selened-dp does not tell its counters")
        rows = wire.records("selene_stats", "selene_dp_counters", data)
        head = wire.parse("selene_stats", data[: wire.ffi.sizeof("struct selene_stats")])
        return wire.numbers(head.fault), [wire.numbers(row) for row in rows]

    async def fsck(self) -> tuple[Any, list[Any]]:
        """Where its buffers are: struct selene_fsck and its rows."""
        data, descriptors = await self._ask(wire.bare(lib.SELENE_O_FSCK, self._next()))
        descriptors.close()
        if wire.header(data).type != lib.SELENE_E_FSCK:
            raise DatapathError("selened-dp does not tell where its buffers are: is it of another release?")
        rows = wire.records("selene_fsck", "selene_fsck_row", data)
        return wire.parse("selene_fsck", data[: wire.ffi.sizeof("struct selene_fsck")]), rows

    async def _ask(
        self, packet: bytes, fds: Sequence[int] = (), timeout: float = _ANSWER_S
    ) -> tuple[bytes, Descriptors]:
        """Send a packet whose number is the last one given, and wait for its answer."""
        connection = self._connection
        if connection is None or connection.closed:
            raise DatapathError("the datapath process is gone")
        number = self._number
        future: asyncio.Future[tuple[bytes, Descriptors]] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        connection.send(packet, fds)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            self._lose(f"no answer within {timeout:g} s")
            raise DatapathError("the datapath process does not answer") from None
        finally:
            self._answers.pop(number, None)

    async def _read(self, connection: Connection) -> None:
        reason = "it closed the connection"
        try:
            while True:
                data, descriptors = await connection.receive()
                if not data:
                    break
                self._take(data, descriptors)
        except (OSError, QosError) as failure:
            reason = str(failure)
        self._closed_by_itself = not connection.reason
        self._lose(connection.reason or reason)

    def _take(self, data: bytes, descriptors: Descriptors) -> None:
        kind, request = wire.header(data)
        if kind == lib.SELENE_E_SESSION_GONE:
            descriptors.close()
            gone = wire.parse("selene_session_gone", data, tail="text")
            self._on_session_gone(gone.session, gone.error, wire.text_of(gone.text))
        elif request and (future := self._answers.get(request)) is not None and not future.done():
            future.set_result((data, descriptors))
        elif request:
            descriptors.close()  # too late: nobody waits any more
        else:
            descriptors.close()
            raise RubbishError(f"found a packet of type {kind} from selened-dp")

    def _lose(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.close()  # so that no order is given any more, and waits for its answer
        for future in self._answers.values():
            if not future.done():
                future.set_exception(DatapathError("the datapath process is gone"))
        on_lost, self._on_lost = self._on_lost, _nobody
        on_lost(reason)


def _nobody(_: str) -> None:
    return


async def _readable(fd: int, timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(fd, wake)
    try:
        async with asyncio.timeout(timeout):
            await future
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


async def _read_byte(fd: int, timeout: float) -> bool:
    """Wait for the byte that says ready; False at the end of the pipe or the time."""
    return await _readable(fd, timeout) and bool(os.read(fd, 1))
