# SPDX-License-Identifier: Apache-2.0
"""Streams: what a set of channels asks of the network."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from selene._selene import ffi, lib
from selene.errors import SeleneError, closed, failure
from selene.sink import Sink
from selene.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from selene.buffer import Message
    from selene.endpoint import Endpoint
    from selene.session import Session

    E = TypeVar("E", bound=Endpoint)

Acceleration = Literal["slow", "fast"]
Resources = Literal["low", "any"]
Delivery = Literal["best-effort", "reliable"]
Wait = Literal["auto", "sleep", "spin"]

_VALUES: Final[Mapping[str, Mapping[str, int]]] = {
    "acceleration": {"slow": lib.SELENE_SLOW, "fast": lib.SELENE_FAST},
    "resources": {"low": lib.SELENE_LOW, "any": lib.SELENE_ANY},
    "delivery": {"best-effort": lib.SELENE_BEST_EFFORT, "reliable": lib.SELENE_RELIABLE},
    "wait": {"auto": lib.SELENE_WAIT_AUTO, "sleep": lib.SELENE_WAIT_SLEEP, "spin": lib.SELENE_WAIT_SPIN},
}
_MAX_CHANNEL: Final = 2**64 - 1


class Stream:
    """Quality requirements, and the channels that have them. Made by `Session.stream`."""

    def __init__(self, session: Session, numbers: Mapping[str, int], policies: Mapping[str, str]) -> None:
        self._session = session
        self._endpoints: dict[Endpoint, None] = {}
        self._lock = threading.Lock()  # held while the pointer is used or taken away
        self._pointer: Any = None
        options = ffi.new("selene_options *")
        lib.selene_options_defaults(options)
        for name, value in policies.items():
            if value not in _VALUES[name]:
                accepted = ", ".join(_VALUES[name])
                raise SeleneError(errno.EINVAL, f"{name}: found {value!r}, accepted {accepted}")
            setattr(options, name, _VALUES[name][value])
        for name, number in numbers.items():
            try:
                setattr(options, name, number)
            except OverflowError:
                raise SeleneError(errno.EINVAL, f"{name}: found {number}, which does not fit") from None
        self._reliable = policies["delivery"] == "reliable"
        out = ffi.new("selene_stream **")
        code = lib.selene_create_stream(session._pointer, options, out)
        if code < 0:
            raise failure(code)
        self._pointer = out[0]

    @property
    def technology(self) -> str:
        """The technology that the daemon has chosen for remote traffic, such as `udp`."""
        return self._text(lib.selene_stream_technology)

    @property
    def reason(self) -> str:
        """Why it was chosen."""
        return self._text(lib.selene_stream_reason)

    def source(self, channel: int | None = None, *, name: str | None = None) -> Source:
        """A source of the channel with this number, or of the channel with this name (1 to 255 bytes of UTF-8).
        Raises SeleneError."""
        with self._session._use(), self._lock:
            return self._add(Source(self._open(), _channel(channel, name)))

    def sink(
        self,
        channel: int | None = None,
        *,
        name: str | None = None,
        callback: Callable[[Message], object] | None = None,
    ) -> Sink:
        """A sink of a channel, by number or by name. With a callback each message is handed to it, in a thread of the
        library or inside `Session.poll`, and released when it returns. Raises SeleneError."""
        with self._session._use(), self._lock:
            return self._add(Sink(self._open(), _channel(channel, name), callback))

    def close(self) -> None:
        """Close the stream and its sources and sinks. Raises BufferError, as those do."""
        if not self._session._enter_to_close():
            return
        try:
            with self._lock:  # from here on nothing is added
                pointer, self._pointer = self._pointer, None
            if pointer is None:
                return
            try:
                for endpoint in reversed(list(self._endpoints)):
                    endpoint.close()
            except BaseException:
                self._pointer = pointer
                raise
            lib.selene_close_stream(pointer)
        finally:
            self._session._leave()
        self._session._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Stream:
        if self._pointer is None:
            raise closed("stream")
        return self

    def _text(self, read: Callable[[Any], Any]) -> str:
        with self._session._use(), self._lock:
            text: str = ffi.string(read(self._open()._pointer)).decode(errors="replace")
            return text

    def _add(self, endpoint: E) -> E:
        self._endpoints[endpoint] = None
        return endpoint

    def _forget(self, endpoint: Endpoint) -> None:
        self._endpoints.pop(endpoint, None)


def _channel(channel: int | None, name: str | None) -> int | bytes:
    """The channel as libselene takes it: a number or a name."""
    if (channel is None) == (name is None):
        raise SeleneError(errno.EINVAL, "a channel has either a number or a name: give one of them")
    if channel is not None:
        if not 0 <= channel <= _MAX_CHANNEL:
            raise SeleneError(errno.EINVAL, f"channel: found {channel}, accepted 0 to {_MAX_CHANNEL}")
        return channel
    assert name is not None
    raw = name.encode()
    if b"\0" in raw:
        raise SeleneError(errno.EINVAL, f"channel name: found {name!r}, accepted text without NUL")
    return raw
