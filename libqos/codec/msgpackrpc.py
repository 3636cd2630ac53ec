# SPDX-License-Identifier: Apache-2.0
"""msgpack-RPC: bytes in, events out, and no socket anywhere.

Three messages, each of them a MessagePack array (the msgpack-rpc specification, msgpack-rpc/spec.md on GitHub)::

    request       [0, id, method, params]     id: 32 bits without sign; method: a string; params: an array
    response      [1, id, error, result]      error or result is nil
    notification  [2, method, params]

Both sides send all three. The ids of one direction have nothing to do with those of the other.

The rules:
- `Connection` reads what comes as a stream: `receive` it, then take `next_event` until it gives None, which means that
  more is needed. How the bytes were cut does not matter.
- What the specification does not allow is refused, not guessed: another type in a field, an extension type, a key of a
  map that is no string or comes twice, text that is not UTF-8, an id that is in use or was never sent.
- A message is bounded in bytes, in depth, and in the values it is made of; calls in number, each way. `_Scanner` holds
  to that on the bytes, and only a whole message is decoded: the library makes room for as many elements as an array
  says it has, so that 3 kB of heads of arrays would cost it 30 MB.
- `RemoteError` is the other side's fault. It ends the stream: there is no way to find the next message, and each later
  `next_event` raises it again. `LocalError` is the caller's, and changes nothing.
- A call that nobody waits for any more (`abandon`) keeps its id until the answer has come, which is then swallowed: a
  late answer is no fault, and a peer that never answers cannot have ids piled up.

Left out on purpose: extension types (and with them time stamps, which travel as integers, `..._ns`) and streaming.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack

from libqos.errors import QosError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_METHOD_LENGTH: Final = 128

_REQUEST: Final = 0
_RESPONSE: Final = 1
_NOTIFICATION: Final = 2
_IDS: Final = 1 << 32
_ACCEPTED: Final = "nil, bool, int, float, str, bin, array and map"
_KINDS: Final[dict[type, str]] = {bytes: "binary", list: "an array", dict: "a map"}


class LocalError(QosError):
    """This side asked for what cannot be sent."""


class RemoteError(QosError):
    """The other side sent what is not msgpack-RPC, or more than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a connection, the same for what is sent and what is received."""

    message_bytes: int = 1 << 20
    values: int = 16384  # elements of arrays, keys and values of maps, in all
    depth: int = 16  # arrays and maps inside each other, the message itself included
    calls_out: int = 64  # ours that are not answered
    calls_in: int = 64  # the peer's that are not answered


@dataclass(frozen=True, slots=True)
class Request:
    """The peer calls a method, and waits for `respond` or `refuse` with this id."""

    id: int
    method: str
    params: list[Any]


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to one of our calls; `error` is None if it went well."""

    id: int
    error: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Notification:
    """The peer calls a method and wants no answer."""

    method: str
    params: list[Any]


Event = Request | Response | Notification


class Connection:
    """One side of a stream."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._scanner = _Scanner(self.limits)
        self._packer = msgpack.Packer(use_bin_type=True, strict_types=True)
        self._next_id = 0
        self._ours: dict[int, bool] = {}  # the id of each call that is not answered: whether somebody waits
        self._theirs: set[int] = set()
        self._fault: RemoteError | None = None

    # ---- what comes ----------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """What the peer has sent. Who takes all events after each call keeps no more than one message here."""
        self._scanner.receive(data)

    def next_event(self) -> Event | None:
        """The next message, or None: more is needed. Raises RemoteError."""
        if self._fault is not None:
            raise self._fault
        try:
            while (message := self._next_message()) is not None:
                if (event := self._event(message)) is not None:
                    return event
        except RemoteError as error:
            self._fault = error
            raise
        return None

    def _next_message(self) -> list[Any] | None:
        if (data := self._scanner.next_message()) is None:
            return None
        try:
            message = msgpack.unpackb(data, raw=False, strict_map_key=True, object_pairs_hook=_map)
        except ValueError as error:
            raise RemoteError(f"found what is no message: {error}") from error
        if type(message) is not list:
            raise RemoteError(f"found {_kind(message)}, accepted an array")
        return message

    def _event(self, message: list[Any]) -> Event | None:
        match message:
            case [int(kind), number, method, params] if kind == _REQUEST and type(kind) is int:
                return self._request(_id(number), _method(method), _params(params))
            case [int(kind), number, error, result] if kind == _RESPONSE and type(kind) is int:
                return self._response(_id(number), error, result)
            case [int(kind), method, params] if kind == _NOTIFICATION and type(kind) is int:
                return Notification(_method(method), _params(params))
        raise RemoteError(
            f"found an array of {len(message)} that begins with {_kind(message[0]) if message else 'nothing'}, "
            "accepted [0, id, method, params], [1, id, error, result] and [2, method, params]"
        )

    def _request(self, number: int, method: str, params: list[Any]) -> Request:
        if number in self._theirs:
            raise RemoteError(f"found a second call with id {number} before the first one was answered")
        if len(self._theirs) >= self.limits.calls_in:
            raise RemoteError(f"found more than {self.limits.calls_in} calls at a time")
        self._theirs.add(number)
        return Request(number, method, params)

    def _response(self, number: int, error: Any, result: Any) -> Response | None:
        if number not in self._ours:
            raise RemoteError(f"found an answer with id {number}, which no call waits for")
        if error is not None and result is not None:
            raise RemoteError("found an answer with both error and result, accepted one of them")
        return Response(number, error, result) if self._ours.pop(number) else None

    # ---- what goes -----------------------------------------------------------------------------------------------

    def request(self, method: str, params: Sequence[Any]) -> tuple[int, bytes]:
        """A call: its id, and the bytes to send. Raises LocalError."""
        if len(self._ours) >= self.limits.calls_out:
            raise LocalError(f"{method}: {self.limits.calls_out} calls are not answered yet, and more are not allowed")
        while self._next_id in self._ours:
            self._next_id = (self._next_id + 1) % _IDS
        number = self._next_id
        data = self._pack([_REQUEST, number, _own_method(method), list(params)], method)
        self._next_id = (number + 1) % _IDS
        self._ours[number] = True
        return number, data

    def abandon(self, number: int) -> None:
        """Nobody waits for the answer to this call any more; without meaning if it has come."""
        if number in self._ours:
            self._ours[number] = False

    @property
    def owed(self) -> int:
        """How many abandoned calls the peer has not answered."""
        return sum(not awaited for awaited in self._ours.values())

    def respond(self, number: int, result: Any) -> bytes:
        """The answer to the peer's call `number`. Raises LocalError, for instance if `result` cannot be sent."""
        return self._answer(number, None, result)

    def refuse(self, number: int, error: Any) -> bytes:
        """The answer that the peer's call `number` has failed; `error` is anything but None. Raises LocalError."""
        if error is None:
            raise LocalError("an error of None would say that there was none")
        return self._answer(number, error, None)

    def notify(self, method: str, params: Sequence[Any]) -> bytes:
        """A call without answer. Raises LocalError."""
        return self._pack([_NOTIFICATION, _own_method(method), list(params)], method)

    def _answer(self, number: int, error: Any, result: Any) -> bytes:
        if number not in self._theirs:
            raise LocalError(f"there is no call {number} of the peer's to be answered")
        data = self._pack([_RESPONSE, number, error, result], "the answer")
        self._theirs.discard(number)
        return data

    def _pack(self, message: list[Any], what: str) -> bytes:
        try:
            _check(message, self.limits)
            data: bytes = self._packer.pack(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise LocalError(f"{what}: cannot be sent: {error}") from error
        if len(data) > self.limits.message_bytes:
            raise LocalError(f"{what}: found {len(data)} bytes, accepted {self.limits.message_bytes}")
        return data


class _Scanner:
    """Finds where each message ends, and refuses what is out of bounds as soon as its bytes say so."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._begin = 0  # of the message
        self._at = 0  # of the value in it that comes next
        self._open: list[int] = []  # of each array and map that has begun: the values that are still to come
        self._values = 0

    def receive(self, data: bytes) -> None:
        del self._buffer[: self._begin]
        self._at -= self._begin
        self._begin = 0
        self._buffer += data

    def next_message(self) -> bytes | None:
        while (head := self._head()) is not None:
            self._at, inside = head
            if inside:
                self._open.append(inside)
                continue
            while self._open:
                self._open[-1] -= 1
                if self._open[-1]:
                    break
                self._open.pop()
            if not self._open:
                message = bytes(self._buffer[self._begin : self._at])
                self._begin, self._values = self._at, 0
                return message
        return None

    def _head(self) -> tuple[int, int] | None:
        """The next value: where it ends, and, as an array or map, how many values are inside; None: more is needed."""
        if self._at >= len(self._buffer):
            return None
        first = self._buffer[self._at]
        if (known := _HEADS[first]) is None:
            raise RemoteError(f"found a value of type 0x{first:02x}, accepted {_ACCEPTED}")
        width, number, factor = known
        end = self._at + 1 + width
        if width:
            if end > len(self._buffer):
                return None
            number = int.from_bytes(self._buffer[self._at + 1 : end])
        inside = number * factor
        if factor:
            if len(self._open) >= self._limits.depth:
                raise RemoteError(f"found a message {_too_deep(self._limits)}")
            self._values += inside
            if self._values > self._limits.values:
                raise RemoteError(f"found a message {_too_many(self._limits)}")
        else:
            end += number
        if end - self._begin > self._limits.message_bytes:
            raise RemoteError(f"found a message of more than {self._limits.message_bytes} bytes")
        return (end, inside) if end <= len(self._buffer) else None


def _head_of(first: int) -> tuple[int, int, int] | None:
    """By the first byte of a value (specification of MessagePack, "Formats"): how many bytes of length follow it, else
    the length; and how many values are in an element: 0 if the length counts bytes. None: not accepted."""
    if first < 0x80 or first >= 0xE0:
        return 0, 0, 0
    if first < 0xA0:
        return 0, first & 0x0F, 2 if first < 0x90 else 1
    if first < 0xC0:
        return 0, first & 0x1F, 0
    if first in (0xC0, 0xC2, 0xC3):
        return 0, 0, 0
    if first in (0xCA, 0xCB):
        return 0, 4 << (first & 1), 0
    if 0xCC <= first <= 0xD3:
        return 0, 1 << (first & 3), 0
    widths = {0xC4: 0, 0xC5: 0, 0xC6: 0, 0xD9: 0, 0xDA: 0, 0xDB: 0, 0xDC: 1, 0xDD: 1, 0xDE: 2, 0xDF: 2}
    if first not in widths:
        return None
    width = {0xC4: 1, 0xC5: 2, 0xD9: 1, 0xDA: 2, 0xDC: 2, 0xDE: 2}.get(first, 4)
    return width, 0, widths[first]


_HEADS: Final = [_head_of(first) for first in range(256)]


def _too_deep(limits: Limits) -> str:
    return f"with arrays and maps in each other more than {limits.depth} deep"


def _too_many(limits: Limits) -> str:
    return f"of more than {limits.values} values"


def _map(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a map has the same key twice")
    if any(type(key) is not str for key in made):
        raise ValueError("a map has a key that is no string")
    return made


def _check(message: list[Any], limits: Limits) -> None:
    """Raises ValueError for what the other side would refuse."""
    level: list[Any] = [message]
    values = 0
    for _ in range(limits.depth):
        following: list[Any] = []
        for value in level:
            if type(value) is dict:
                if any(type(key) is not str for key in value):
                    raise ValueError("found a key of a map that is no string")
                values += 2 * len(value)
                following += value.values()
            elif type(value) is list:
                values += len(value)
                following += value
            if values > limits.values:
                raise ValueError(f"found a message {_too_many(limits)}")
        level = following
    if any(type(value) in (list, dict) for value in level):
        raise ValueError(f"found a message {_too_deep(limits)}")


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _IDS:
        raise RemoteError(f"found {_kind(value)} as id, accepted an integer of 32 bits without sign")
    return value


def _method(value: Any) -> str:
    if type(value) is bytes:  # from those who know strings of the time before MessagePack had "bin", such as pynvim
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise RemoteError("found a method that is not UTF-8") from None
    if type(value) is not str or not 0 < len(value) <= MAX_METHOD_LENGTH:
        raise RemoteError(f"found {_kind(value)} as method, accepted a string of 1 to {MAX_METHOD_LENGTH} characters")
    return value


def _own_method(value: str) -> str:
    try:
        return _method(value)
    except RemoteError as error:
        raise LocalError(str(error)) from error


def _params(value: Any) -> list[Any]:
    if type(value) is not list:
        raise RemoteError(f"found {_kind(value)} as params, accepted an array")
    return value


def _kind(value: Any) -> str:
    """A value of the peer's for a message: bounded, and without what a terminal would act on."""
    if value is None:
        return "nil"
    if type(value) in (int, float, bool):
        return ascii(value)
    if type(value) is str:
        return ascii(value[:40])
    return _KINDS.get(type(value), "another type")
