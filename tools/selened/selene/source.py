# SPDX-License-Identifier: Apache-2.0
"""Sources: messages out."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

from selene._selene import ffi, lib
from selene.buffer import Buffer
from selene.endpoint import Endpoint
from selene.errors import FULL, failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from selene.stream import Stream

_new, _send, _get, _emit = ffi.new, lib.selene_send, lib.selene_get_buffer, lib.selene_emit
_BUFFER: Final = ffi.typeof("selene_buffer *")
_DONTWAIT: Final[int] = lib.SELENE_DONTWAIT
_AGAIN: Final = -errno.EAGAIN
_FULL_SLEEP_S: Final = 20e-6  # between two looks whether there is room


@dataclass(frozen=True, slots=True)
class SourceStats:
    """Counters of a source, as in `selene_source_stats`."""

    messages: int  # emitted
    bytes: int
    datagrams: int
    dropped: int  # best effort, no credit
    dropped_slow: int  # for a local sink that was behind
    failed: int  # the kernel refused
    again: int  # looks that found no room
    local_sinks: int
    remote_sinks: int


class Source(Endpoint):
    """Sends the messages of one channel. Made by `Stream.source`; used by one thread at a time."""

    _kind = "source"

    def __init__(self, stream: Stream, channel: int | bytes) -> None:
        super().__init__(stream)
        self._reliable = stream._reliable
        self._borrowed: dict[int, tuple[Any, int]] = {}  # buffers of the application, by id, and the size asked for
        self._last: SourceStats | None = None
        out = _new("selene_source **")
        if isinstance(channel, bytes):
            code = lib.selene_create_named_source(stream._pointer, channel, out)
        else:
            code = lib.selene_create_source(stream._pointer, channel, out)
        if code < 0:
            raise failure(code)
        self.id: int = lib.selene_source_id(out[0])
        self._pointer = out[0]

    def get(self, size: int, wait: bool = True) -> Buffer:
        """Borrow a buffer for a message of `size` bytes, to write it in place.

        Raises SeleneAgainError when the pool is empty (sinks hold too much) and the stream is best effort or `wait` is
        False; SeleneError with EMSGSIZE above `MAX_MESSAGE`."""
        while True:
            buffer = _new(_BUFFER)
            with self._lock:
                pointer = self._pointer
                if pointer is None:
                    raise self._closed()
                if self._late:
                    self._settle(pointer)
                code = _get(pointer, size, _DONTWAIT, buffer)
                if code == 0:
                    self._borrowed[id(buffer)] = (buffer, size)
                    return Buffer(self, buffer)
            self._wait_for_room(code, wait)

    def send(self, data: bytes | bytearray | memoryview, wait: bool = True) -> int:
        """Send a copy of `data`; returns the token for `outcome`. Raises as `get` and `Buffer.emit` do."""
        content = data if type(data) is bytes else ffi.from_buffer(data)
        while True:
            with self._lock:
                pointer = self._pointer
                if pointer is None:
                    raise self._closed()
                if self._late:
                    self._settle(pointer)
                token: int = _send(pointer, content, len(content), _DONTWAIT)
            if token >= 0:
                return token
            self._wait_for_room(token, wait)

    def send_many(self, messages: Sequence[bytes], wait: bool = True) -> int:
        """Send copies of several messages; returns how many were sent, from the first. Fewer than all when one could
        not be sent; raises as `send` when that is the first."""
        sent = 0
        while True:
            with self._lock:
                pointer = self._pointer
                if pointer is None:
                    raise self._closed()
                if self._late:
                    self._settle(pointer)
                code = 0
                for data in islice(messages, sent, None):
                    code = _send(pointer, data, len(data), _DONTWAIT)
                    if code < 0:
                        break
                    sent += 1
                else:
                    return sent
            if sent and not (code == _AGAIN and wait and self._reliable):
                return sent
            self._wait_for_room(code, wait)

    def outcome(self, token: int) -> Literal["sent", "pending"]:
        """What became of a message. Raises SeleneError: with the number of what went wrong when it was not sent, ESTALE
        when the token is older than the last 4096."""
        with self._lock:
            if self._pointer is None:
                raise self._closed()
            code = lib.selene_check_emit_outcome(self._pointer, token)
        if code >= 0:
            return "sent" if code == 1 else "pending"
        if code == -errno.ESTALE:
            kept = lib.SELENE_OUTCOMES
            raise failure(code, f"the outcome of message {token} is forgotten: only the last {kept} are kept")
        raise failure(code, None if code == -errno.EINVAL else f"message {token} was not sent: {os.strerror(-code)}")

    def flush(self) -> None:
        """Send what is batched now. Raises SeleneError when that fails."""
        with self._lock:
            if self._pointer is None:
                raise self._closed()
            code = lib.selene_flush(self._pointer)
        if code < 0:
            raise failure(code, f"a batch was not sent: {os.strerror(-code)}")

    def stats(self) -> SourceStats:
        """The counters, from any thread; after close, what they were then."""
        with self._life:
            if self._pointer is not None:
                self._last = self._read_stats(self._pointer)
        assert self._last is not None
        return self._last

    def _emit(self, buffer: Buffer, wait: bool) -> int:
        borrowed = buffer._buffer
        while True:
            with self._lock:
                pointer = self._pointer
                if pointer is None:
                    raise self._closed()
                token: int = _emit(pointer, borrowed, _DONTWAIT)
                if token >= 0 or not borrowed.data:  # taken, which some errors do too
                    buffer._owner = None
                    self._borrowed.pop(id(borrowed), None)
            if token >= 0:
                return token
            self._wait_for_room(token, wait)

    def _wait_for_room(self, code: int, wait: bool) -> None:
        """Sleep a moment before the next try, or raise."""
        if code != _AGAIN:
            raise failure(code)
        if not (wait and self._reliable):
            raise failure(code, FULL)
        time.sleep(_FULL_SLEEP_S)

    def _stamp(self, pointer: Any, stamps: Any) -> None:
        lib.selene_source_stamp(pointer, stamps)

    def _room_of(self, buffer: Any) -> int:
        return self._borrowed[id(buffer)][1]

    def _cancel(self, buffer: Any) -> None:
        with self._lock:
            if self._pointer is not None:
                self._take_back(self._pointer, buffer)

    def _take_back(self, pointer: Any, buffer: Any) -> None:
        if self._borrowed.pop(id(buffer), None) is not None:
            lib.selene_cancel_buffer(pointer, buffer)

    def _finish(self, pointer: Any) -> None:
        for buffer, _ in list(self._borrowed.values()):
            self._take_back(pointer, buffer)
        self._late.clear()
        self._keep_stats(pointer)

    def _keep_stats(self, pointer: Any) -> None:
        self._last = self._read_stats(pointer)

    def _close_pointer(self, pointer: Any) -> None:
        lib.selene_close_source(pointer)

    @staticmethod
    def _read_stats(pointer: Any) -> SourceStats:
        out = _new("selene_source_stats *")
        lib.selene_source_get_stats(pointer, out)
        return SourceStats(*(getattr(out, name) for name in SourceStats.__slots__))
