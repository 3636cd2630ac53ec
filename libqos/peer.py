# SPDX-License-Identifier: Apache-2.0
"""Two processes that call each other: msgpack-RPC (`libqos.codec.msgpackrpc`) over unix sockets, TCP and TLS.

    async def report(peer: Peer, params: list[Any]) -> str: ...

    async with await serve("tls://[::]:7480", {"report": report}, tls=files) as server: ...
    async with await connect("tls://cuc.example:7480", {}, tls=files) as peer:
        answer = await peer.call("report", [{"port": "eth0"}])

Either side calls; which of them has connected does not matter. Calls of one peer run at the same time, its
notifications one after the other in their order. `libqos.peerserver` listens; `libqos.peerlink` connects, and again by
itself.

What must hold, whatever a peer does:
- it ends its own connection and nothing else; `Closed` says why, `Counters` count it, and it is told if it still reads;
- everything that waits is bounded: connections, calls in each direction, notifications, unsent bytes, the time for a
  handshake, a call, a method, and for reading what it was sent;
- a peer that is silent is asked (`peer.ping`, which any msgpack-RPC answers, if only by an error); who stays silent has
  gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from libqos.codec import msgpackrpc
from libqos.codec.msgpackrpc import LocalError, Notification, RemoteError, Request, Response
from libqos.endpoint import TlsFiles, parse, tls_context
from libqos.rpc import Peer as Credentials
from libqos.rpc import RpcError, peer_of

log = logging.getLogger(__name__)

# Gives the result, which must be such as MessagePack has. RpcError becomes an error of the peer's call.
Method = Callable[["Peer", list[Any]], Awaitable[Any]]

PING: Final = "peer.ping"
CLOSE: Final = "peer.close"
RECEIVE_BYTES: Final = 64 << 10
_MESSAGE_CHARACTERS: Final = 1000

# Why a connection has ended: `Closed.code`, and the keys of `Counters.closed`.
CLOSE_CODES: Final = {
    "closed": "this side closed it",
    "by-peer": "the peer closed it and said why",
    "gone": "the peer has gone, or the network between",
    "malformed": "the peer sent what is not msgpack-RPC, or more than it may",
    "silent": "nothing came from the peer, and no answer to being asked",
    "slow": "the peer did not read what it was sent",
    "flood": "the peer's notifications came faster than they were handled",
    "unanswered": "the peer left too many calls without an answer",
    "busy": "there were too many connections",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server and of each connection; times in seconds."""

    connections: int = 1000
    messages: msgpackrpc.Limits = field(default_factory=msgpackrpc.Limits)
    notifications: int = 256  # that wait to be handled
    unsent_bytes: int = 256 << 10  # and one message
    connect_s: float = 10.0  # with the handshake of TLS
    call_s: float = 10.0
    method_s: float = 10.0
    write_s: float = 10.0  # without anything being read
    ping_s: float = 2.0
    silent_s: float = 7.0


@dataclass
class Counters:
    """What went wrong and how often; of a server, for all its connections."""

    accepted: int = 0
    handshakes_failed: int = 0
    accept_failed: int = 0
    unknown_methods: int = 0
    failed_methods: int = 0
    closed: Counter[str] = field(default_factory=Counter)  # by code


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a connection has ended: one of CLOSE_CODES, and a sentence."""

    code: str
    message: str


class Peer:
    """The other end of a connection; made by `connect` and `serve`. A context manager that closes it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        methods: Mapping[str, Method],
        limits: Limits,
        counters: Counters,
        name: str,
    ) -> None:
        self.name = name  # who it is, for messages: its address
        self.counters = counters
        self.credentials: Credentials | None = None  # of a unix socket: process and user
        self.certificate: Mapping[str, Any] = writer.get_extra_info("peercert") or {}  # as ssl.getpeercert() gives it
        self.closed: Closed | None = None
        self._reader, self._writer = reader, writer
        self._methods, self._limits = methods, limits
        self._codec = msgpackrpc.Connection(limits.messages)
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._calls: dict[int, asyncio.Future[Response]] = {}
        self._notifications: asyncio.Queue[Notification] = asyncio.Queue(limits.notifications)
        self._writing = asyncio.Lock()
        self._ended: asyncio.Future[Closed] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._abort: asyncio.TimerHandle | None = None
        writer.transport.set_write_buffer_limits(high=limits.unsent_bytes)

    def start(self) -> None:
        """Begin to listen to it; `connect` and `serve` do that."""
        if self.closed is not None:
            return
        for work in (self._read(), self._handle_notifications(), self._keep_alive()):
            self._spawn(work)

    # ---- what a user does ----------------------------------------------------------------------------------------

    async def call(self, method: str, params: Sequence[Any] = (), timeout: float | None = None) -> Any:
        """Call a method of the peer and give its result; `timeout` in seconds, `Limits.call_s` if None.

        Raises RpcError: what the method raised there, or "timeout" or "closed"; LocalError for what cannot be sent."""
        seconds = self._limits.call_s if timeout is None else timeout
        answer: asyncio.Future[Response] = self._loop.create_future()
        number = None

        def encode() -> bytes:
            nonlocal number
            number, data = self._codec.request(method, params)
            self._calls[number] = answer
            return data

        try:
            async with asyncio.timeout(seconds):
                await self._write(encode)
                response = await answer
        except TimeoutError:
            raise RpcError("timeout", f"{self.name}: {method}: no answer within {seconds:g} s") from None
        finally:
            if number is not None and self._calls.pop(number, None) is not None:
                self._give_up(number)
        if response.error is not None:
            raise _error_of(response.error, f"{self.name}: {method}")
        return response.result

    async def notify(self, method: str, params: Sequence[Any] = ()) -> None:
        """Call a method of the peer without waiting for an answer; waits while the peer reads too slowly.

        Raises RpcError("closed"), or LocalError for what cannot be sent."""
        await self._write(lambda: self._codec.notify(method, params))

    def close(self, code: str = "closed", message: str = "closed by this side") -> None:
        """End the connection, and tell the peer why. `code`: one of CLOSE_CODES."""
        if self.closed is None:
            with contextlib.suppress(LocalError, OSError):
                self._writer.write(self._codec.notify(CLOSE, [code, message[:_MESSAGE_CHARACTERS]]))
            self._end(code, message)

    async def wait_closed(self) -> Closed:
        """Wait until the connection has ended, all that belonged to it too, and give the reason."""
        closed = await asyncio.shield(self._ended)
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._abort is not None:
            self._abort.cancel()
        return closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    # ---- reading -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while self.closed is None and (data := await self._reader.read(RECEIVE_BYTES)):
                self._heard = self._loop.time()
                self._codec.receive(data)
                while self.closed is None and (event := self._codec.next_event()) is not None:
                    self._take(event)
            self._end("gone", "the peer closed the connection")
        except RemoteError as error:
            self.close("malformed", str(error))
        except OSError as error:  # ssl.SSLError is one
            self._end("gone", f"connection lost: {error.strerror or error}")

    def _take(self, event: msgpackrpc.Event) -> None:
        if isinstance(event, Response):
            answer = self._calls.pop(event.id)
            if not answer.done():
                answer.set_result(event)
        elif isinstance(event, Request):
            self._spawn(self._answer(event))
        elif event.method == CLOSE:
            self._end("by-peer", f"closed by the peer: {_text(event.params[-1:])}")
        else:
            try:
                self._notifications.put_nowait(event)
            except asyncio.QueueFull:
                self.close("flood", f"found more than {self._limits.notifications} notifications that wait")

    async def _answer(self, request: Request) -> None:
        try:
            result = await self._handle(request.method, request.params)
            try:
                await self._write(lambda: self._codec.respond(request.id, result))
            except LocalError as error:
                self.counters.failed_methods += 1
                log.error("%s: %s: its result cannot be sent: %s", self.name, request.method, error)
                raise RpcError("internal", f"{request.method}: its result cannot be sent: {error}") from error
        except RpcError as error:
            said = [error.code, str(error)[:_MESSAGE_CHARACTERS]]
            if self.closed is None:
                with contextlib.suppress(RpcError):
                    await self._write(lambda: self._codec.refuse(request.id, said))

    async def _handle_notifications(self) -> None:
        while self.closed is None:
            notification = await self._notifications.get()
            try:
                await self._handle(notification.method, notification.params)
            except RpcError as error:
                log.warning("%s: notification %s: %s", self.name, notification.method, error)

    async def _handle(self, name: str, params: list[Any]) -> Any:
        """Run a method; what it raises becomes RpcError."""
        if name == PING:
            return None
        if (method := self._methods.get(name)) is None:
            self.counters.unknown_methods += 1
            raise RpcError("unknown-method", f"found method {name!a}, accepted {', '.join(sorted(self._methods))}")
        try:
            async with asyncio.timeout(self._limits.method_s):
                return await method(self, params)
        except RpcError:
            raise
        except TimeoutError:
            self.counters.failed_methods += 1
            raise RpcError("timeout", f"{name}: not done after {self._limits.method_s:g} s") from None
        except Exception as error:
            self.counters.failed_methods += 1
            log.exception("%s: %s failed", self.name, name)
            raise RpcError("internal", f"{name} failed; the log there says why") from error

    # ---- writing -------------------------------------------------------------------------------------------------

    async def _write(self, encode: Callable[[], bytes]) -> None:
        """Send what `encode` gives, once the peer has read enough of what was sent before."""
        async with self._writing:
            try:
                async with asyncio.timeout(self._limits.write_s):
                    await self._writer.drain()
            except TimeoutError:
                unread = self._writer.transport.get_write_buffer_size()
                self._end("slow", f"did not read for {self._limits.write_s:g} s; {unread} bytes wait")
            except OSError as error:
                self._end("gone", f"connection lost: {error.strerror or error}")
            if self.closed is not None:
                raise self._closed_error()
            self._writer.write(encode())

    def _give_up(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._codec.abandon(number)
        if self._codec.owed >= self._limits.messages.calls_out:
            self.close("unanswered", f"{self._codec.owed} calls had no answer in time")

    # ---- the connection's life -----------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        limits = self._limits
        while self.closed is None:
            begin = self._loop.time()
            await asyncio.sleep(limits.ping_s)
            now = self._loop.time()
            if now - begin > 2 * limits.ping_s + 1:  # it was us who slept: what has come meanwhile is not read yet
                self._heard = now
            silent = now - self._heard
            if silent > limits.silent_s:
                self.close("silent", f"nothing came for {silent:.1f} s, accepted are {limits.silent_s:g} s")
            elif silent > limits.ping_s / 2:
                with contextlib.suppress(RpcError, LocalError):
                    await self._write(self._ping)

    def _ping(self) -> bytes:
        number, data = self._codec.request(PING, [])
        self._codec.abandon(number)  # whatever comes is heard
        return data

    def _end(self, code: str, message: str) -> None:
        if self.closed is not None:
            return
        self.closed = Closed(code, message)
        self.counters.closed[code] += 1
        log.log(
            logging.INFO if code in ("closed", "by-peer", "gone") else logging.WARNING, "%s: %s", self.name, message
        )
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._closed_error())
        self._calls.clear()
        self._writer.close()  # sends what is still in the buffer
        self._abort = self._loop.call_later(self._limits.write_s, self._writer.transport.abort)
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._ended.set_result(self.closed)

    def _closed_error(self) -> RpcError:
        assert self.closed is not None
        return RpcError("closed", f"{self.name}: {self.closed.message}")

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _error_of(error: Any, where: str) -> RpcError:
    """What the peer's method raised; a stranger's error may be anything."""
    match error:
        case [str(code), str(message)]:
            return RpcError(code, f"{where}: {_text([message])}")
        case [int(), str(message)]:  # Neovim's
            return RpcError("other", f"{where}: {_text([message])}")
    return RpcError("other", f"{where}: {_text([error])}")


def _text(values: Sequence[Any]) -> str:
    """What the peer said, as one line for a person."""
    text = " ".join(value if isinstance(value, str) else repr(value) for value in values)
    return (
        "".join(letter if letter.isprintable() else "?" for letter in text[:_MESSAGE_CHARACTERS]) or "no reason given"
    )


def check_methods(methods: Mapping[str, Method]) -> None:
    """Raises ValueError for a name that is ours."""
    if taken := {PING, CLOSE} & methods.keys():
        raise ValueError(f"{', '.join(sorted(taken))}: names that libqos.peer uses itself")


async def connect(
    url: str,
    methods: Mapping[str, Method],
    *,
    tls: TlsFiles | None = None,
    limits: Limits | None = None,
    counters: Counters | None = None,
) -> Peer:
    """Connect to who serves `url` (`libqos.endpoint`); `methods` are those that it may call.

    Raises InputError for a URL or files that cannot be used, RpcError("no-peer") if nobody is reached."""
    check_methods(methods)
    limits = limits or Limits()
    endpoint = parse(url)
    context = tls_context(endpoint, tls, server=False)
    opening: Any
    if endpoint.scheme == "unix":
        opening = asyncio.open_unix_connection(endpoint.path, limit=RECEIVE_BYTES)
    else:
        opening = asyncio.open_connection(endpoint.host, endpoint.port, limit=RECEIVE_BYTES, ssl=context)
    try:
        async with asyncio.timeout(limits.connect_s):
            reader, writer = await opening
    except TimeoutError:
        raise RpcError("no-peer", f"{url}: no answer within {limits.connect_s:g} s") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have such a name
        raise RpcError("no-peer", f"{url}: {getattr(error, 'strerror', None) or error}") from error
    peer = Peer(reader, writer, methods, limits, counters or Counters(), url)
    if endpoint.scheme == "unix":
        peer.credentials = peer_of(writer.get_extra_info("socket"))
    peer.start()
    return peer
