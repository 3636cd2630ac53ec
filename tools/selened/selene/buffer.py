# SPDX-License-Identifier: Apache-2.0
"""Borrowed memory: a buffer to write and emit, a message to read and release.

Both show a slot of shared memory as a memoryview, without a copy. The slot is somebody else's after emit or release,
and unmapped after close, so the view is released with it: using it fails with ValueError. What was made from the view
(a slice, an array over it) cannot be taken back; while such a thing lives the slot is not given away: emit, release and
close raise BufferError, as `mmap.close` does, and `bytes(...)` is the cure.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from selene._selene import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from selene.sink import Sink
    from selene.source import Source

Owner = TypeVar("Owner", "Source", "Sink")

_buffer = ffi.buffer


class Borrowed(Generic[Owner]):
    """A slot that a source or a sink has lent us. Used by one thread at a time."""

    __slots__ = ("_buffer", "_lent", "_memory", "_owner")

    _writable: ClassVar[bool]

    def __init__(self, owner: Owner, buffer: Any, memory: Any = None) -> None:
        self._owner: Owner | None = owner  # None: given back
        self._buffer = buffer  # selene_buffer *
        self._memory = memory  # what `buffer` points into, if that is not its own
        # The view, a reference to what it and all that is made from it keep alive, and the buffer.
        self._lent: tuple[memoryview, weakref.ref[Any], Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return int(self._buffer.size)

    def __len__(self) -> int:
        return int(self._buffer.size)

    def _lend(self) -> memoryview:
        owner, buffer = self._owner, self._buffer
        if owner is None or owner._pointer is None:
            raise _gone()
        slot = _buffer(buffer.data, buffer.size)
        view = memoryview(slot) if self._writable else memoryview(slot).toreadonly()
        # First known to the endpoint, then a look whether it is open: close does it the other way round, so that one
        # of the two sees the other.
        self._lent = lent = (view, weakref.ref(slot), buffer)
        owner._views[id(buffer)] = lent
        if owner._pointer is None:
            view.release()
            raise _gone()
        return view

    def _end_view(self) -> None:
        """Take the view back. Raises BufferError while something made from it lives."""
        if self._lent is not None:
            view, reference, buffer = self._lent
            view.release()
            if reference() is not None:
                raise BufferError("slices of the data are still in use: drop them first, or copy with bytes()")
            self._lent = None
            if self._owner is not None:
                self._owner._views.pop(id(buffer), None)

    def _abandon(self) -> None:
        """Leave it to the owner, which takes it back when it is next called and nothing made from the view lives."""
        owner, reference = self._owner, None
        if owner is not None:
            try:
                self._end_view()
            except BufferError:
                reference = self._lent[1] if self._lent is not None else None
            self._owner = None
            owner._late.append((self._buffer, self._memory, reference))

    def _held(self) -> Owner:
        """The owner, if the slot is still lent to us. Raises ValueError."""
        if self._owner is None or self._owner._pointer is None:
            raise _gone()
        return self._owner

    def __del__(self) -> None:
        # The view, unlike us, may still be in use: `sink.consume().data`.
        owner = self._owner
        if owner is not None:
            self._owner, reference = None, None
            if self._lent is not None:
                _, reference, buffer = self._lent
                owner._views[id(buffer)] = (None, reference, buffer)
            owner._late.append((self._buffer, self._memory, reference))


class Buffer(Borrowed["Source"]):
    """Memory to write a message into (`Source.get`). As a context manager it emits at the end of the block, or, when
    that raises, gives itself back unsent."""

    __slots__ = ()

    _writable = True

    @property
    def data(self) -> memoryview:
        """The message as writable bytes; valid until emit or cancel. Its content is undefined at first."""
        return self._lent[0] if self._lent is not None else self._lend()

    @property
    def size(self) -> int:
        """Bytes of the message; may be lowered before emit. Setting it ends the view that `data` gave."""
        return int(self._buffer.size)

    @size.setter
    def size(self, size: int) -> None:
        room = self._held()._room_of(self._buffer)
        if not 0 <= size <= room:
            raise ValueError(f"size: found {size}, accepted 0 to the {room} bytes that were asked for")
        self._end_view()
        self._buffer.size = size

    def emit(self, wait: bool = True) -> int:
        """Send it; returns the token for `Source.outcome`. Raises SeleneAgainError when the stream is reliable, there
        is no room, and `wait` is False (the buffer stays ours); SeleneError; BufferError."""
        owner = self._owner
        if owner is None:
            raise _gone()
        if self._lent is not None:
            self._end_view()
        return owner._emit(self, wait)

    def cancel(self) -> None:
        """Give it back unsent. Does nothing after emit. Raises BufferError."""
        owner = self._owner
        if owner is not None:
            self._end_view()
            self._owner = None
            owner._cancel(self._buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        owner = self._owner
        if owner is None:
            return
        if kind is not None:
            self._abandon()
            return
        try:
            if self._lent is not None:
                self._end_view()
            owner._emit(self, True)
        except BaseException:
            self._abandon()
            raise


class Message(Borrowed["Sink"]):
    """A message that has arrived (`Sink.consume`). As a context manager it is released at the end of the block; one
    that is dropped without release is given back at the sink's next call after `data` was dropped too."""

    __slots__ = ()

    _writable = False

    @property
    def data(self) -> memoryview:
        """The message as read-only bytes, without a copy; valid until release. A local source of the same user can
        still write to it."""
        return self._lent[0] if self._lent is not None else self._lend()

    @property
    def sequence(self) -> int:
        """Number of the message, counted by its source from 0."""
        return int(self._buffer.sequence)

    @property
    def source(self) -> int:
        """Id of its source (`Source.id`)."""
        return int(self._buffer.source)

    @property
    def sent_ns(self) -> int:
        """When it was emitted, Unix time in ns by the clock of the source's host; known until release."""
        self._held()
        return int(lib.selene_buffer_sent_ns(self._buffer))

    def __bytes__(self) -> bytes:
        """A copy that stays."""
        self._held()
        copy: bytes = _buffer(self._buffer.data, self._buffer.size)[:]
        return copy

    def release(self) -> None:
        """Give it back. Releasing twice does nothing. Raises BufferError."""
        owner = self._owner
        if owner is not None:
            if self._lent is not None:
                self._end_view()
            self._owner = None
            owner._give_back(self._buffer, self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:  # the block's error is what matters
            self._abandon()


class Burst(list[Message]):
    """Several messages that arrived together (`Sink.consume_many`). As a context manager it releases them all with one
    call."""

    def __init__(self, messages: Iterable[Message], owner: Sink, memory: Any) -> None:
        super().__init__(messages)
        self._owner = owner
        self._memory = memory

    def release(self) -> None:
        """Release the messages that are still held. Raises BufferError, and then none is released."""
        held = [message for message in self if message._owner is not None]
        whole = len(held) == len(self._memory)
        for message in held:
            whole = whole and message._memory is self._memory
            if message._lent is not None:
                message._end_view()
        if not whole:
            for message in held:
                message.release()
            return
        for message in held:
            message._owner = None
        if held:
            self._owner._give_back_all(self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            for message in self:
                message._abandon()


def _gone() -> ValueError:
    return ValueError("operation forbidden on a released message")
