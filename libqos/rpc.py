# SPDX-License-Identifier: Apache-2.0
"""Question and answer over a daemon's status socket: the wire, and the client that blocks.

A stream socket (AF_UNIX) carries one JSON object a line in each direction::

    → {"method":"info","params":{}}                 params may be left out
    ← {"ok":true,"result":…}
    ← {"ok":false,"error":{"code":"unknown-method","message":"…"}}

A streaming method answers with any number of `{"ok":true,"result":…,"more":true}` and ends with
`{"ok":true,"more":false}`; the client ends it early by closing. Several questions may follow each other on one
connection, one at a time. Sizes and times are bounded on both sides. The server is in `libqos.rpcserver`; this module
imports nothing heavy, so that a command can use it without a cost to its start.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from libqos.errors import QosError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_REQUEST_BYTES: Final = 64 << 10
MAX_REPLY_BYTES: Final = 8 << 20

_UCRED: Final = struct.Struct("3i")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class RpcError(QosError):
    """A call that failed. `code` says how: one of CODES, or a code of the method's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


CODES: Final = {
    "no-daemon": "nothing listens at the path",
    "no-permission": "the socket may not be used",
    "timeout": "no answer in time",
    "closed": "the daemon closed the connection",
    "bad-reply": "the answer is not of this protocol",
    "bad-request": "the question is no JSON object with a method",
    "unknown-method": "there is no such method",
    "too-large": "the question or the answer is too large",
    "busy": "too many clients, or too many of one user",
    "internal": "the daemon failed to answer; its log says why",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says (SO_PEERCRED): at the time it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """The credentials of a connected unix socket's other end (`unix(7)`)."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def encode(message: Mapping[str, object]) -> bytes:
    """One message as a line. Raises TypeError or ValueError for what JSON cannot hold."""
    # Half a surrogate pair, which UTF-8 cannot hold, becomes its JSON escape.
    return _encode(message).encode(errors="backslashreplace") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One line as a message. Raises ValueError when it is no JSON object."""
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if type(message) is not dict:
        raise ValueError("no JSON object")
    return message


def call(path: str | os.PathLike[str], request: Mapping[str, object], *, timeout: float = 2.0) -> Any:
    """Ask a daemon one question, for instance `{"method": "info"}`, and give the `result` of its answer.

    `timeout` bounds the whole call, in seconds. Raises RpcError, whose text says what to do."""
    with _Connection(path, request, timeout) as connection:
        return connection.answer().get("result")


def stream(path: str | os.PathLike[str], request: Mapping[str, object], *, timeout: float = 2.0) -> Iterator[Any]:
    """Ask a question with many answers and give each `result` as it comes, until the daemon ends it.

    `timeout` bounds connecting and each wait for the next answer, in seconds. Raises RpcError."""
    with _Connection(path, request, timeout) as connection:
        while True:
            message = connection.answer()
            if "result" in message:
                yield message["result"]
            if not message.get("more"):
                return
            connection.deadline = time.monotonic() + timeout


class _Connection:
    """One connection of a client, with a question sent."""

    def __init__(self, path: str | os.PathLike[str], request: Mapping[str, object], timeout: float) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self._buffer = bytearray()
        data = encode(request)
        if len(data) > MAX_REQUEST_BYTES:
            raise RpcError("too-large", f"question of {len(data)} bytes, accepted at most {MAX_REQUEST_BYTES}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._wait()
            self._socket.connect(self.path)
            with contextlib.suppress(BrokenPipeError):  # a server that refuses at once has said why
                self._socket.sendall(data)
        except OSError as error:
            self._socket.close()
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def answer(self) -> dict[str, Any]:
        """The next answer; an error object is raised as RpcError."""
        try:
            message = decode(self._line())
        except ValueError as error:
            raise RpcError("bad-reply", f"{self.path}: the answer is not of this protocol: {error}") from error
        except OSError as error:
            raise self._failure(error) from error
        if message.get("ok") is True:
            return message
        error_object = message.get("error")
        if not isinstance(error_object, dict):
            raise RpcError("bad-reply", f"{self.path}: found an answer without ok and error")
        code, text = str(error_object.get("code", "internal")), str(error_object.get("message", "no reason given"))
        raise RpcError(code, f"{self.path}: {text}")

    def _line(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_REPLY_BYTES:
                raise RpcError("too-large", f"{self.path}: found an answer of more than {MAX_REPLY_BYTES} bytes")
            self._wait()
            data = self._socket.recv(1 << 16)
            if not data:
                raise RpcError("closed", f"{self.path}: the daemon closed the connection before it answered")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _wait(self) -> None:
        """Let the next socket call wait for what is left of the time."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _failure(self, error: OSError) -> RpcError:
        if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:  # EAGAIN: the listen queue is full
            return RpcError("timeout", f"{self.path}: no answer within {self.timeout:g} s; is the daemon overloaded?")
        if error.errno == errno.ENOENT:
            return RpcError("no-daemon", f"{self.path}: no such socket; start the daemon, or give its --socket")
        if error.errno == errno.ECONNREFUSED:
            return RpcError("no-daemon", f"{self.path}: nobody listens; the daemon has ended, start it again")
        if error.errno == errno.EACCES:
            return RpcError("no-permission", f"{self.path}: permission denied; run as the daemon's user or group")
        if error.errno in (errno.ECONNRESET, errno.EPIPE):
            return RpcError("closed", f"{self.path}: the daemon closed the connection")
        return RpcError("no-daemon", f"{self.path}: {error.strerror or error}")
