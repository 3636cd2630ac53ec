# SPDX-License-Identifier: Apache-2.0
"""Sinks and sources in asyncio: `async for message in aio.Sink(sink)`, `await aio.Source(source).send(data)`.

No message passes a thread. A sink is watched by its descriptor, and only while somebody waits: a consume that found
nothing has armed it, so what comes between that look and the wait makes it readable. The loop gets a duplicate, since
the sink may be closed elsewhere and the number of its descriptor given to another. Who is cancelled has taken nothing:
a message is consumed in the step that returns it, and sent in the step that returns the token.

Sessions, streams, sources and sinks are opened as ever, which can take a moment (towards other hosts half a second): do
it before the loop runs, or by `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from selene.errors import SeleneAgainError, SeleneError, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    import selene
    from selene.buffer import Buffer, Burst, Message

    T = TypeVar("T")

_TURN: Final = 64  # messages, then the loop's other tasks
_EAGER: Final = 4  # looks for room with a round of the loop between them; later ones are _LOOK_S apart
_LOOK_S: Final = 1e-3


class _Turns:
    """Lets other tasks run now and then: a flood never waits, and would keep them out."""

    def __init__(self) -> None:
        self._left = _TURN

    async def take(self, messages: int = 1) -> None:
        self._left -= messages
        if self._left < 0:
            self._left = _TURN
            await asyncio.sleep(0)


class Sink:
    """A sink in the event loop that runs now; the sink itself, with its counters, is `sink`.

    Iterating consumes until the sink is closed; each message is released when the next one is asked for. Several tasks
    may wait: each message goes to one of them. As an async context manager it closes the sink at the end."""

    def __init__(self, sink: selene.Sink) -> None:
        """Raises SeleneError when the sink is closed, has a callback or is in a loop already; RuntimeError without a
        loop."""
        self.sink = sink
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._turns = _Turns()
        self._last: Message | None = None  # of the iteration
        sink._tell_at_close(self._closing)
        self._fd = os.dup(sink.fileno())
        self._end = weakref.finalize(self, os.close, self._fd)

    async def get(self, timeout: float | None = None) -> Message:
        """The next message; waits for it, at most `timeout` seconds. Raises SeleneTimeoutError; SeleneError when the
        sink is closed, also while it waits, or holds too many messages; RuntimeError in another loop."""
        return await self._take(self.sink.try_consume, timeout)

    async def get_many(self, n: int, timeout: float | None = None) -> Burst:
        """Up to `n` messages that are there; waits for the first. Raises as `get`."""
        return await self._take(lambda: self.sink.consume_many(n, 0) or None, timeout)

    async def close(self) -> None:
        """Close the sink; who waits gets SeleneError (EBADF), iterations end. Closing twice does nothing. Raises
        BufferError, as the sink's own close."""
        self._release_last()
        await asyncio.to_thread(self.sink.close)  # it asks the daemon
        self._wake()
        self._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        self._release_last()
        try:
            self._last = await self.get()
        except SeleneError:
            if self.sink.closed:
                raise StopAsyncIteration from None
            raise
        return self._last

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _take(self, look: Callable[[], T | None], timeout: float | None) -> T:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this sink is another event loop's: make its aio.Sink in the loop that uses it")
        await self._turns.take()
        if (taken := look()) is not None:
            return taken
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._readable()
                    if (taken := look()) is not None:
                        return taken
        except TimeoutError:
            raise failure(-errno.ETIMEDOUT, "no message arrived in time") from None

    async def _readable(self) -> None:
        waiter = self._loop.create_future()
        if not self._waiters:
            self._loop.add_reader(self._fd, self._wake)
        self._waiters.append(waiter)
        if self.sink.closed:  # by another thread, which did not find the waiter
            self._wake()
        try:
            await waiter
        finally:
            if waiter in self._waiters:  # cancelled
                self._waiters.remove(waiter)
                if not self._waiters:
                    self._loop.remove_reader(self._fd)

    def _wake(self) -> None:
        """Let all who wait look again, and stop watching."""
        if self._waiters:
            self._loop.remove_reader(self._fd)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _closing(self) -> None:
        """Called when the sink is closed, by itself or with its session, in whatever thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _release_last(self) -> None:
        if self._last is not None:
            self._last.release()
            self._last = None


class Source:
    """A source whose back pressure suspends the task, not the loop; the source itself is `source`.

    With reliable delivery a task waits for slow sinks and for credit. Best effort never waits: what a sink cannot take
    is dropped and counted, and an empty pool raises SeleneAgainError. A task that is cancelled while it waits has sent
    nothing. As an async context manager it closes the source at the end."""

    def __init__(self, source: selene.Source) -> None:
        self.source = source
        self._turns = _Turns()

    async def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send a copy of `data`; returns the token for `source.outcome`. Raises SeleneError."""
        return await self._when_there_is_room(functools.partial(self.source.send, data, False))

    async def send_many(self, messages: Sequence[bytes]) -> int:
        """Send copies of several messages; returns how many were sent, from the first. Fewer than all when one could
        not be sent; raises as `send` when that is the first. Cancelled, some may have been sent: the counters of
        `source` tell."""
        sent = 0
        while sent < len(messages):
            burst = messages[sent : sent + _TURN]
            try:
                sent += await self._when_there_is_room(functools.partial(self.source.send_many, burst, False), _TURN)
            except SeleneError:
                if sent == 0:
                    raise
                break
        return sent

    async def get(self, size: int) -> Buffer:
        """Borrow a buffer for a message of `size` bytes, for `emit`. Raises SeleneError."""
        return await self._when_there_is_room(functools.partial(self.source.get, size, False))

    async def emit(self, buffer: Buffer) -> int:
        """Send a borrowed buffer; returns the token. Cancelled, the buffer stays borrowed. Raises SeleneError,
        BufferError."""
        return await self._when_there_is_room(functools.partial(buffer.emit, False))

    async def close(self) -> None:
        """Close the source. With reliable delivery it waits up to a second until its sinks have taken what was sent."""
        await asyncio.to_thread(self.source.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _when_there_is_room(self, attempt: Callable[[], T], messages: int = 1) -> T:
        await self._turns.take(messages)
        looks = 0
        while True:
            try:
                return attempt()
            except SeleneAgainError:
                if not self.source._reliable:
                    raise
            looks += 1
            await asyncio.sleep(0 if looks < _EAGER else _LOOK_S)
