# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of `libqos.rpc`, on asyncio.

What must hold, whatever a client does (any local user may connect to a 0666 socket):
- clients are bounded, in all and per user, so that one user cannot shut the others out;
- a question, an answer, the time for each, and what waits in a client's buffer are bounded; a client that does not read
  is disconnected, one that says nothing as well;
- rubbish is answered with an error object; no input raises an exception out of here;
- a connection ends when it is cancelled. So it waits under `asyncio.timeout`: before Python 3.12 `wait_for` forgets a
  cancellation that comes together with what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from libqos.rpc import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Peer, RpcError, decode, encode, peer_of

log = logging.getLogger(__name__)

Params = dict[str, Any]
# `async def` that gives a result, or an async generator for many results. RpcError becomes an error object.
Method = Callable[[Params, Peer], Awaitable[Any] | AsyncIterator[Any]]

_BUFFER_BYTES: Final = 256 << 10
_SO_PASSRIGHTS: Final = 83  # asm-generic/socket.h; the module socket lacks it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server; times in seconds."""

    clients: int = 64
    clients_per_user: int = 32
    request_bytes: int = MAX_REQUEST_BYTES
    reply_bytes: int = MAX_REPLY_BYTES
    idle_s: float = 30.0
    handler_s: float = 10.0
    write_s: float = 5.0


@dataclass
class Counters:
    """What was refused and why: nothing ends here without a count."""

    calls: int = 0
    errors: int = 0
    refused_clients: int = 0
    slow_clients: int = 0
    idle_clients: int = 0


@dataclass
class Server:
    """Answers questions at `path` by `methods`.

    The caller holds the lock that says that this daemon is the only one, and has removed a stale socket file: an
    existing one makes `start` fail with OSError. `mode` is the file's: 0o666 for a read-only status socket."""

    path: str | os.PathLike[str]
    methods: Mapping[str, Method]
    mode: int = 0o666
    limits: Limits = field(default_factory=Limits)
    counters: Counters = field(default_factory=Counters)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _users: Counter[int] = field(default_factory=Counter)

    async def start(self) -> None:
        """Bind and listen. Raises OSError (EADDRINUSE when the file exists)."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(OSError):  # before Linux 6.16
            # To close what a stranger passes can block, so it is refused. Whoever connects inherits that.
            listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        try:
            listener.bind(os.fspath(self.path))
            # Before listen(), so that nobody can connect under the mode that the umask gave.
            os.chmod(self.path, self.mode)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(
                self._connected, sock=listener, limit=self.limits.request_bytes
            )
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Stop listening, disconnect every client, and remove the socket file."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            peer = peer_of(writer.get_extra_info("socket"))
            self._users[peer.uid] += 1
            try:
                await self._serve(reader, writer, peer)
                writer.close()  # sends what is still in the buffer
                async with asyncio.timeout(self.limits.write_s):
                    await writer.wait_closed()
            finally:
                self._users[peer.uid] -= 1
                if not self._users[peer.uid]:
                    del self._users[peer.uid]
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client has gone, does not read, or the server closes
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        # Above this drain() waits, so that a client that does not read holds one answer and this much, never more.
        writer.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        limits = self.limits
        if len(self._tasks) > limits.clients or self._users[peer.uid] > limits.clients_per_user:
            self.counters.refused_clients += 1
            message = f"too many clients, accepted {limits.clients}, {limits.clients_per_user} per user; try later"
            await self._reply_error(writer, RpcError("busy", message))
            return
        while True:
            try:
                async with asyncio.timeout(limits.idle_s):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except TimeoutError:
                self.counters.idle_clients += 1
                return
            except asyncio.LimitOverrunError:
                # What follows is the middle of the question: no way to find the next one.
                message = f"found a question of more than {limits.request_bytes} bytes"
                await self._reply_error(writer, RpcError("too-large", message))
                return
            if not await self._answer(line, reader, writer, peer):
                return

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> bool:
        """Answer one question; False when the connection has to end."""
        self.counters.calls += 1
        try:
            method, params = self._method(line)
            result = method(params, peer)
            if inspect.isasyncgen(result):
                return await self._stream(result, reader, writer)
            async with asyncio.timeout(self.limits.handler_s):
                value = await result  # type: ignore[misc]
            return await self._reply(writer, {"ok": True, "result": value})
        except RpcError as error:
            return await self._reply_error(writer, error)
        except TimeoutError:
            return await self._reply_error(writer, RpcError("timeout", "the daemon took too long to answer"))
        except Exception:
            log.exception("status socket %s: a method failed", os.fspath(self.path))
            return await self._reply_error(writer, RpcError("internal", "the daemon failed to answer; see its log"))

    def _method(self, line: bytes) -> tuple[Method, Params]:
        accepted = 'accepted one line {"method":"NAME","params":{…}}'
        try:
            message = decode(line)
        except ValueError as error:
            raise RpcError("bad-request", f"found no JSON object ({error}), {accepted}") from None
        name, params = message.get("method"), message.get("params", {})
        if type(name) is not str or type(params) is not dict:
            raise RpcError("bad-request", f"found another shape of question, {accepted}")
        if name not in self.methods:
            known = ", ".join(sorted(self.methods))
            raise RpcError("unknown-method", f"found method {name[:40]!r}, accepted {known}")
        return self.methods[name], params

    async def _stream(
        self, results: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send each result until the generator ends or the client closes (or speaks, which ends it too)."""
        gone = asyncio.ensure_future(reader.read(1))
        try:
            while True:
                following = asyncio.ensure_future(anext(results, _END))
                try:
                    await asyncio.wait({gone, following}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.gather(following, return_exceptions=True)
                if gone.done() or following.cancelled():
                    return False
                value = following.result()
                if value is _END:
                    return await self._reply(writer, {"ok": True, "more": False})
                if not await self._reply(writer, {"ok": True, "result": value, "more": True}):
                    return False
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await results.aclose()  # type: ignore[attr-defined]

    async def _reply_error(self, writer: asyncio.StreamWriter, error: RpcError) -> bool:
        self.counters.errors += 1
        return await self._reply(writer, {"ok": False, "error": {"code": error.code, "message": str(error)}})

    async def _reply(self, writer: asyncio.StreamWriter, message: Mapping[str, object]) -> bool:
        """Send one answer; False when the client does not read, and is to be disconnected."""
        data = encode(message)
        if len(data) > self.limits.reply_bytes:
            raise RpcError("too-large", f"the answer has {len(data)} bytes, accepted {self.limits.reply_bytes}")
        writer.write(data)
        try:
            async with asyncio.timeout(self.limits.write_s):
                await writer.drain()
        except TimeoutError:
            self.counters.slow_clients += 1
            log.warning("status socket %s: a client does not read its answers and was disconnected", self.path)
            return False
        except OSError:  # the client has gone
            return False
        return True


_END: Final = object()
