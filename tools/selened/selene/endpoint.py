# SPDX-License-Identifier: Apache-2.0
"""What sources and sinks share: one thread at a time in libselene, and a close that pulls memory from under nobody.

libselene wants one thread at a time in a source or a sink, and nobody in it when it is closed; Python code breaks both
with ease, so there is a lock. `_lock` is held during the calls that use the endpoint, which are short (a wait is cut
into slices); `_life` only while counters are read or the pointer is taken away, so that any thread can read them;
`_delivering` while a callback runs. None is held across the C call that closes: it waits for the callbacks of others.
"""

from __future__ import annotations

import errno
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

from selene._selene import ffi
from selene.errors import SeleneError, closed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from selene.stream import Stream

SLICE_NS: Final = 100_000_000  # no call waits longer in C, where Ctrl-C cannot reach it


class Stamps:
    """When the last message passed through libselene, Unix time in ns."""

    def __init__(self, stamps: Any) -> None:
        self._stamps = stamps

    @property
    def api_ns(self) -> int:
        """Source: emit was called. Sink: consume had the message. 0: none yet."""
        return int(self._stamps.api_ns)

    @property
    def system_ns(self) -> int:
        """Source: just before it went to the kernel or a ring; 0 if into a batch. Sink: it had come from there."""
        return int(self._stamps.system_ns)


class Endpoint(ABC):
    """A source or a sink of a stream."""

    _kind: ClassVar[str]

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pointer: Any = None  # None: closed
        self._lock = threading.Lock()
        self._life = threading.Lock()
        self._delivering = threading.RLock()  # held by a callback, which may close its own sink
        # Views that are out, by id of their buffer: what they keep alive tells whether anything made from them is left.
        # Without the view itself when whoever borrowed the buffer is gone.
        self._views: dict[int, tuple[memoryview | None, weakref.ref[Any], Any]] = {}
        # Buffers that were dropped: (buffer, what it lies in, as in _views or None). The garbage collector appends, so
        # nothing else is done there; whoever holds the lock next gives them back.
        self._late: deque[tuple[Any, Any, weakref.ref[Any] | None]] = deque()
        self._stamps: Any = None  # selene_stamps *, which libselene writes while the endpoint is open
        self._told_at_close: weakref.WeakMethod[Callable[[], None]] | None = None

    @property
    def closed(self) -> bool:
        """Whether it has been closed, itself or with its stream or session."""
        return self._pointer is None

    def close(self) -> None:
        """Close it. Borrowed buffers and messages go with it. Closing twice does nothing. Raises BufferError, and stays
        open, while slices of their data are in use."""
        session = self._stream._session
        if not session._enter_to_close():
            return
        try:
            with self._delivering:
                with self._life:
                    pointer, self._pointer = self._pointer, None
                    if pointer is None:
                        return
                    self._keep_stats(pointer)  # for whoever asks before all is over
                if self._told_at_close is not None and (tell := self._told_at_close()) is not None:
                    tell()
                with self._lock:  # a call that is on its way sees the missing pointer after its slice
                    try:
                        self._end_views()
                    except BaseException:
                        self._pointer = pointer
                        raise
                    self._finish(pointer)
            self._close_pointer(pointer)
        finally:
            session._leave()
        self._stream._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_views(self) -> None:
        in_use = 0
        for view, reference, _ in list(self._views.values()):
            try:
                if view is not None:
                    view.release()
            except BufferError:
                in_use += 1
            else:
                in_use += reference() is not None
        if in_use:
            raise BufferError(
                f"the {self._kind} cannot be closed: slices of the data of {in_use} of its messages are still in use; "
                "drop them first, or copy with bytes()"
            )
        self._views.clear()

    def _settle(self, pointer: Any) -> None:
        """Give back what was dropped; with the lock held."""
        for _ in range(len(self._late)):
            buffer, memory, reference = self._late.popleft()
            if reference is not None and reference() is not None:
                self._late.append((buffer, memory, reference))
                continue
            if reference is not None:
                self._views.pop(id(buffer), None)
            self._take_back(pointer, buffer)

    def stamps(self) -> Stamps:
        """From now on, when the last message passed through libselene: what is returned changes with each message."""
        with self._lock:
            if self._pointer is None:
                raise self._closed()
            if self._stamps is None:
                self._stamps = ffi.new("selene_stamps *")
            self._stamp(self._pointer, self._stamps)
            return Stamps(self._stamps)

    @abstractmethod
    def _stamp(self, pointer: Any, stamps: Any) -> None:
        """Let libselene write stamps; with the lock held."""

    def _tell_at_close(self, tell: Callable[[], None]) -> None:
        """Call `tell`, a method of whoever waits for this endpoint in a loop, when it is being closed. Raises
        SeleneError (EBUSY) when somebody else is told."""
        if self._told_at_close is not None and self._told_at_close() is not None:
            raise SeleneError(errno.EBUSY, f"the {self._kind} is in an event loop already")
        self._told_at_close = weakref.WeakMethod(tell)

    def _closed(self) -> SeleneError:
        return closed(self._kind)

    @abstractmethod
    def _take_back(self, pointer: Any, buffer: Any) -> None:
        """Return one borrowed buffer to libselene; with the lock held."""

    @abstractmethod
    def _finish(self, pointer: Any) -> None:
        """The last calls before close, with the lock held."""

    @abstractmethod
    def _keep_stats(self, pointer: Any) -> None:
        """Read the counters for the last time."""

    @abstractmethod
    def _close_pointer(self, pointer: Any) -> None:
        """Close it in libselene, with no lock held."""
