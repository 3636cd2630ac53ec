# SPDX-License-Identifier: Apache-2.0
"""Sinks: messages in."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from selene._selene import ffi, lib
from selene.buffer import Burst, Message
from selene.endpoint import SLICE_NS, Endpoint
from selene.errors import SeleneError, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selene.stream import Stream

_new, _consume, _consume_burst = ffi.new, lib.selene_consume_timeout, lib.selene_consume_burst
_release, _release_burst = lib.selene_release_buffer, lib.selene_release_burst
_BUFFER: Final = ffi.typeof("selene_buffer *")
_BUFFERS: Final = ffi.typeof("selene_buffer[]")
_BUFFER_BYTES: Final = ffi.sizeof("selene_buffer")
_DONTWAIT: Final[int] = lib.SELENE_DONTWAIT
_NOTHING: Final = (-errno.EAGAIN, -errno.ETIMEDOUT)

_log: Final = logging.getLogger("selene")


@dataclass(frozen=True, slots=True)
class SinkStats:
    """Counters of a sink, as in `selene_sink_stats`."""

    messages: int
    bytes: int
    datagrams: int
    lost: int  # missing in the sequences of the sources
    duplicated: int
    reordered: int
    dropped: int  # by this host: the sink was behind
    refused: int  # broken or forged
    local_sources: int
    remote_sources: int


class Sink(Endpoint):
    """Receives the messages of one channel. Made by `Stream.sink`; used by one thread at a time.

    Iterating consumes until the sink is closed; each message is released when the next one is asked for."""

    _kind = "sink"

    def __init__(self, stream: Stream, channel: int | bytes, callback: Callable[[Message], object] | None) -> None:
        super().__init__(stream)
        self._callback = callback
        self._last: SinkStats | None = None
        # A thread may be waiting for a message, with the lock: others then leave their releases in _late. An interrupt
        # can leave it set until the next call.
        self._busy = False
        self._room = _new(_BUFFERS, 64)  # of consume_many, under the lock
        # libselene gives it to selene_on_message, perhaps before this constructor has returned
        self._handle = ffi.new_handle(self) if callback is not None else ffi.NULL
        function = lib.selene_on_message if callback is not None else ffi.NULL
        self._pointer = ffi.NULL
        out = _new("selene_sink **")
        if isinstance(channel, bytes):
            code = lib.selene_create_named_sink(stream._pointer, channel, function, self._handle, out)
        else:
            code = lib.selene_create_sink(stream._pointer, channel, function, self._handle, out)
        if code < 0:
            self._pointer = None
            raise failure(code)
        self._pointer = out[0]
        self.id: int = lib.selene_sink_id(out[0])

    def consume(self, timeout: float | None = None) -> Message:
        """The next message; waits for it, at most `timeout` seconds. Raises SeleneTimeoutError, and SeleneError when
        the sink has a callback, is closed, or holds too many messages."""
        buffer = _new(_BUFFER)
        if timeout is not None:
            if self._take(buffer, timeout):
                return Message(self, buffer)
            raise failure(-errno.ETIMEDOUT, "no message arrived in time")
        while True:  # the same without a look at the clock
            with self._lock:
                pointer = self._pointer
                if pointer is None or self._late:
                    pointer = self._usable()
                self._busy = True
                code = _consume(pointer, SLICE_NS, buffer)
                self._busy = False
            if code == 1:
                return Message(self, buffer)
            if code not in _NOTHING:
                raise failure(code)

    def try_consume(self) -> Message | None:
        """The next message if one is there. Raises as `consume`."""
        buffer = _new(_BUFFER)
        return Message(self, buffer) if self._take(buffer, 0) else None

    def consume_many(self, n: int, timeout: float | None = None) -> Burst:
        """Up to `n` messages that are there; waits for the first, at most `timeout` seconds. Empty when none arrived in
        time. Raises as `consume`."""
        if n < 1:
            raise ValueError(f"n: found {n}, accepted 1 or more")
        wait_ns, deadline = _first_wait(timeout)
        while True:
            with self._lock:
                pointer = self._usable()
                self._busy = True
                if n > len(self._room):
                    self._room = _new(_BUFFERS, n)
                room = self._room
                got = _consume_burst(pointer, _DONTWAIT, room, n)
                if got == -errno.EAGAIN and wait_ns:
                    got = _consume(pointer, wait_ns, room)
                    if got == 1 and n > 1:
                        got += max(0, _consume_burst(pointer, _DONTWAIT, room + 1, n - 1))
                if got > 0:
                    memory = _new(_BUFFERS, got)
                    ffi.memmove(memory, room, got * _BUFFER_BYTES)
                    self._busy = False
                    return Burst([Message(self, memory + i, memory) for i in range(got)], self, memory)
                self._busy = False
            if got not in _NOTHING:
                raise failure(got)
            if deadline is not None and (wait_ns := _next_wait(deadline)) == 0:
                return Burst([], self, ())

    def available(self) -> bool:
        """Whether `try_consume` would return a message now."""
        with self._lock:
            return bool(lib.selene_data_available(self._usable(), _DONTWAIT))

    def fileno(self) -> int:
        """A descriptor that is readable when a message may be there: for select, poll, asyncio. After each wake-up
        consume until there is nothing left, or it stays silent. Raises SeleneError when the sink has a callback."""
        with self._lock:
            fd: int = lib.selene_sink_fd(self._usable())
        if fd < 0:
            raise failure(fd)
        return fd

    def stats(self) -> SinkStats:
        """The counters, from any thread; after close, what they were then."""
        with self._life:
            if self._pointer is not None:
                self._last = self._read_stats(self._pointer)
        assert self._last is not None
        return self._last

    def __iter__(self) -> Iterator[Message]:
        while True:
            try:
                message = self.consume()
            except SeleneError:
                if self.closed:
                    return
                raise
            yield message
            message.release()

    def _stamp(self, pointer: Any, stamps: Any) -> None:
        lib.selene_sink_stamp(pointer, stamps)

    def _usable(self) -> Any:
        """The pointer, with what was dropped given back; with the lock held."""
        pointer = self._pointer
        if pointer is None:
            raise self._closed()
        if self._late:
            self._settle(pointer)
        return pointer

    def _take(self, buffer: Any, timeout: float | None) -> bool:
        wait_ns, deadline = _first_wait(timeout)
        while True:
            with self._lock:
                pointer = self._usable()
                self._busy = True
                code = _consume(pointer, wait_ns, buffer)
                self._busy = False
            if code == 1:
                return True
            if code not in _NOTHING:
                raise failure(code)
            if deadline is not None and (wait_ns := _next_wait(deadline)) == 0:
                return False

    def _give_back(self, buffer: Any, memory: Any) -> None:
        if self._busy:
            self._late.append((buffer, memory, None))
            return
        with self._lock:
            if self._pointer is not None and _release(self._pointer, buffer) < 0:
                raise failure(-errno.EINVAL)

    def _give_back_all(self, memory: Any) -> None:
        if self._busy:
            self._late.extend((memory + i, memory, None) for i in range(len(memory)))
            return
        with self._lock:
            if self._pointer is not None and _release_burst(self._pointer, memory, len(memory)) < 0:
                raise failure(-errno.EINVAL)

    def _take_back(self, pointer: Any, buffer: Any) -> None:
        code = _release(pointer, buffer)
        if code < 0:
            raise failure(code)

    def _deliver(self, buffer: Any) -> None:
        """Run the callback; the library releases the message when this returns."""
        with self._delivering:
            if self._pointer is None or self._callback is None:  # closed meanwhile
                return
            message = Message(self, _new(_BUFFER, buffer[0]))
            try:
                with self._stream._session._in_callback():
                    self._callback(message)
            except Exception:
                _log.exception("the callback of sink %x failed; the message counts as consumed", self.id)
            finally:
                try:
                    message._end_view()
                except BufferError as error:
                    _log.error("the callback of sink %x must not keep its message: %s", self.id, error)
                message._owner = None

    def _finish(self, pointer: Any) -> None:
        self._late.clear()
        self._keep_stats(pointer)

    def _keep_stats(self, pointer: Any) -> None:
        self._last = self._read_stats(pointer)

    def _close_pointer(self, pointer: Any) -> None:
        lib.selene_close_sink(pointer)

    @staticmethod
    def _read_stats(pointer: Any) -> SinkStats:
        out = _new("selene_sink_stats *")
        lib.selene_sink_get_stats(pointer, out)
        return SinkStats(*(getattr(out, name) for name in SinkStats.__slots__))


def _first_wait(timeout: float | None) -> tuple[int, float | None]:
    """The first slice in ns, and the deadline."""
    if timeout is None:
        return SLICE_NS, None
    if timeout <= 0:
        return 0, 0.0
    return min(SLICE_NS, round(timeout * 1e9)), time.monotonic() + timeout


def _next_wait(deadline: float) -> int:
    """The next slice in ns; 0 when the time is over."""
    left = deadline - time.monotonic()
    return min(SLICE_NS, max(1, round(left * 1e9))) if left > 0 else 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def selene_on_message(_: Any, buffer: Any, handle: Any) -> None:
    """Called by libselene in its own thread, or in the thread that polls the session."""
    sink: Sink = ffi.from_handle(handle)
    sink._deliver(buffer)
