# SPDX-License-Identifier: Apache-2.0
"""Sessions: the connection to the local selened.

A session owns its streams, and they their sources and sinks, until closed: dropping a source without close does not
close it. A session that is forgotten is closed by the garbage collector, at the latest when the interpreter ends.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from selene._selene import ffi, lib
from selene.endpoint import SLICE_NS
from selene.errors import SeleneError, closed, failure
from selene.stream import Acceleration, Delivery, Resources, Stream, Wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

MAX_MESSAGE: Final[int] = lib.SELENE_MAX_MESSAGE
_SLICE_MS: Final = SLICE_NS // 1_000_000
_PATH_BYTES: Final = 107  # of a unix socket's address

_log: Final = logging.getLogger("selene")
_sessions: Final[weakref.WeakSet[Session]] = weakref.WeakSet()


def channel_of(name: str) -> int:
    """The number of the channel with this name. Two names with the same number do not meet: names are compared too."""
    return int(lib.selene_channel_of(name.encode()))


class Session:
    """A connection to selened. It comes back by itself after a restart of the daemon.

    `socket`: the daemon's, by default where `SELENE_SOCKET` says or the daemon puts it. `relayed`: through the datapath
    process even where sending directly is possible. `program`: the name in reports. Raises SeleneError when there is no
    daemon, or one of another version. May be used from several threads."""

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, relayed: bool = False, program: str | None = None
    ) -> None:
        self._pointer: Any = None
        self._state = threading.Condition(threading.RLock())
        self._uses = 0  # threads that are in a call
        self._closing = False
        self._streams: dict[Stream, None] = {}
        self._callback_thread: int | None = None
        self._raised: dict[int, BaseException | None] = {}  # what a callback raised, by thread that polls
        options = ffi.new("selene_session_options *")
        lib.selene_session_defaults(options)
        path = os.fsencode(socket) if socket is not None else b""
        if len(path) > _PATH_BYTES:
            text = f"{os.fsdecode(path)}: found {len(path)} bytes, accepted {_PATH_BYTES} in the path of a socket"
            raise SeleneError(errno.ENAMETOOLONG, text)
        texts = ffi.new("char[]", path), ffi.new("char[]", (program or "").encode())
        options.socket = texts[0] if path else ffi.NULL
        options.program = texts[1] if program else ffi.NULL
        options.relayed = relayed
        out = ffi.new("selene_session **")
        code = lib.selene_init_session(out, options)
        if code < 0:
            raise failure(code)
        self.id: int = lib.selene_session_id(out[0])
        self._pointer = out[0]
        _sessions.add(self)

    @property
    def connected(self) -> bool:
        """Whether the daemon is there; False while the session waits for it to come back."""
        with self._use() as pointer:
            return bool(lib.selene_connected(pointer))

    @property
    def direct(self) -> bool:
        """Whether the session sends and receives by itself; False when it is relayed (`selene explain` says why)."""
        with self._use() as pointer:
            return bool(lib.selene_is_direct(pointer))

    def stream(
        self,
        stream: int = 0,
        acceleration: Acceleration = "slow",
        resources: Resources = "low",
        delivery: Delivery = "best-effort",
        wait: Wait = "auto",
        coalesce: bool = True,
        *,
        traffic_class: int = 0,
        time_sensitive: bool = False,
        period_ns: int = 0,
        offset_ns: int = 0,
    ) -> Stream:
        """A stream: sources and sinks meet within the same id. `delivery`: best-effort counts what it drops, reliable
        waits for slow sinks and for credit. `wait`: how a waiting call waits; auto sleeps where resources are low and
        spins where any may be used. `coalesce`: let small messages that come fast share datagrams. Raises SeleneError
        for what this host or this version cannot do."""
        numbers = {
            "stream": stream, "coalesce": int(coalesce), "traffic_class": traffic_class,
            "time_sensitive": int(time_sensitive), "period_ns": period_ns, "offset_ns": offset_ns,
        }  # fmt: skip
        policies = {"acceleration": acceleration, "resources": resources, "delivery": delivery, "wait": wait}
        with self._use():
            made = Stream(self, numbers, policies)
            self._streams[made] = None
            return made

    def poll(self, timeout: float | None = None) -> int:
        """Run the callbacks of the session's sinks in this thread, until there was a message or for `timeout` seconds.
        Returns how many messages were handled. Raises what a callback raises to end the program (KeyboardInterrupt,
        SystemExit); other exceptions of callbacks are logged."""
        deadline = None if timeout is None else time.monotonic() + timeout
        thread = threading.get_ident()
        while True:
            left = _SLICE_MS if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
            with self._use() as pointer:
                self._raised[thread] = None
                try:
                    handled: int = lib.selene_poll(pointer, min(_SLICE_MS, left))
                finally:
                    error = self._raised.pop(thread)
            if error is not None:
                raise error
            if handled or (deadline is not None and time.monotonic() >= deadline):
                return handled

    def close(self) -> None:
        """Close the session and all that belongs to it; reliable sources wait up to a second for their sinks. Raises
        BufferError, and stays open, while slices of messages are in use; SeleneError in a callback."""
        if self._callback_thread == threading.get_ident():
            raise SeleneError(errno.EDEADLK, "a callback cannot close its session: it would wait for itself")
        with self._state:
            while self._closing and self._pointer is not None:
                self._state.wait()
            if self._pointer is None:
                return
            self._closing = True  # nothing new
        try:
            self._wait_unused()
            for stream in reversed(list(self._streams)):
                stream.close()
            with self._state:
                self._wait_unused()  # others that were closing a part of it
                pointer, self._pointer = self._pointer, None
        finally:
            with self._state:
                self._closing = False
                self._state.notify_all()
        lib.selene_close_session(pointer)
        _sessions.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        _close_quietly(self)

    @contextlib.contextmanager
    def _use(self) -> Iterator[Any]:
        """The pointer, which stays valid meanwhile."""
        with self._state:
            if self._closing or self._pointer is None:
                raise closed("session")
            self._uses += 1
        try:
            yield self._pointer
        finally:
            self._leave()

    def _enter_to_close(self) -> bool:
        """As `_use`, for a part that is being closed; ended by `_leave`. False: it has gone with the session."""
        with self._state:
            if self._pointer is None:
                return False
            self._uses += 1
            return True

    def _leave(self) -> None:
        with self._state:
            self._uses -= 1
            self._state.notify_all()

    def _wait_unused(self) -> None:
        with self._state:
            while self._uses:
                self._state.wait()

    @contextlib.contextmanager
    def _in_callback(self) -> Iterator[None]:
        thread = threading.get_ident()
        before, self._callback_thread = self._callback_thread, thread
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            if thread in self._raised:
                self._raised[thread] = error
            else:
                _log.critical("a callback wants to end the program, but runs in a thread of libselene", exc_info=error)
        finally:
            self._callback_thread = before

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream, None)


def _close_quietly(session: Session) -> None:
    try:
        session.close()
    except Exception as error:
        _log.warning("a session that was not closed stays open to the end of the process: %s", error)


@atexit.register
def _close_all() -> None:
    """Before the interpreter takes its threads apart: callbacks must not outlive it."""
    for session in list(_sessions):
        _close_quietly(session)
