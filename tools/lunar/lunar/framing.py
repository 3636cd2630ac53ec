# SPDX-License-Identifier: Apache-2.0
"""Cutting a byte stream into messages: bytes in, messages out, no file anywhere.

Two framings: lines (a message is what stands before a newline, and what is left at the end), and records (`--binary`:
four bytes of length, little endian, then so many bytes). `feed` gives every message that is complete, in order, and
keeps the beginning of the next. A message above the limit is an error with its number: it stands in `error` as soon as
the limit is passed, after the messages in front of it have been given; nothing comes after it. With `skip_long` it is
left out and counted instead. What is kept never exceeds the limit.

Messages are numbered from 1, those left out too: `number_of` says which one of the stream a message was.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from libqos.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTH: Final = struct.Struct("<I")


class FramingError(InputError):
    """What was read holds no message that can be sent. The text starts with `name:number:`."""


class Splitter(ABC):
    """What both framings share. `number` is that of the last message seen; `skipped` how many were left out."""

    what: str

    def __init__(self, limit: int, *, name: str = "stdin", skip_long: bool = False) -> None:
        self.limit = limit
        self.name = name
        self.skip_long = skip_long
        self.number = 0
        self.skipped = 0
        self.error: FramingError | None = None
        self._rest = b""
        self._numbers: Sequence[int] = ()  # of the messages given last

    def number_of(self, index: int) -> int:
        """The number of a message in the list that `feed` or `end` gave last."""
        return self._numbers[index]

    @abstractmethod
    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete with `data`."""

    @abstractmethod
    def end(self) -> list[bytes]:
        """The message at the end of the stream, if there is one."""

    def too_long(self, number: int, found: str, limit: str) -> None:
        """A message is above a limit: this one's, or one that shows when it is sent."""
        if self.skip_long:
            self.skipped += 1
        else:
            self._fail(number, f"found a {self.what} of {found}, accepted at most {limit} (--skip-long leaves it out)")

    def _above_limit(self, found: str) -> None:
        """Message `number` is above this one's limit."""
        self.too_long(self.number, found, f"{self.limit}")

    def _fail(self, number: int, text: str) -> None:
        self.error = FramingError(f"{self.name}:{number}: {text}")


class Lines(Splitter):
    """Messages end with a newline, which is not part of them."""

    what = "line"
    _skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        if self.error:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._skipping and lines:  # the end of a line whose beginning has been dropped
            del lines[0]
            self._skipping = False
        if lines and max(map(len, lines)) > self.limit:
            lines = self._checked(lines)
        else:
            self._numbers = range(self.number + 1, self.number + 1 + len(lines))
            self.number += len(lines)
        if not self.error and not self._skipping and len(self._rest) > self.limit:
            self.number += 1
            self._above_limit(f"more than {self.limit} bytes")
            self._skipping = True
        if self.error or self._skipping:
            self._rest = b""
        return lines

    def _checked(self, lines: list[bytes]) -> list[bytes]:
        """Lines up to the first that is too long, or without those that are."""
        fitting, numbers = [], []
        for line in lines:
            self.number += 1
            if len(line) <= self.limit:
                fitting.append(line)
                numbers.append(self.number)
            else:
                self._above_limit(f"{len(line)} bytes")
                if self.error:
                    break
        self._numbers = numbers
        return fitting

    def end(self) -> list[bytes]:
        last, self._rest = self._rest, b""
        if not last or self.error:
            return []
        self.number += 1
        self._numbers = (self.number,)
        return [last]


class Records(Splitter):
    """Messages have their length in front: four bytes, little endian."""

    what = "record"
    _skip_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        if self.error:
            return []
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
        data = self._rest + data
        messages, numbers = [], []
        at, end = 0, len(data)
        while end - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(data, at)
            if length > self.limit:
                self.number += 1
                self._above_limit(f"{length} bytes")
                if self.error:
                    end = at
                    break
                at += LENGTH.size + length
                if at > end:
                    self._skip_bytes = at - end
                    at = end
                continue
            if end - at - LENGTH.size < length:
                break
            at += LENGTH.size
            messages.append(data[at : at + length])
            at += length
            self.number += 1
            numbers.append(self.number)
        self._rest = data[at:end]
        self._numbers = numbers
        return messages

    def end(self) -> list[bytes]:
        if (self._rest or self._skip_bytes) and not self.error:
            number = self.number if self._skip_bytes else self.number + 1
            self._fail(number, "the record is cut off: found the end of the input, accepted as many bytes as it says")
        self._rest = b""
        return []


def frame(message: bytes | memoryview) -> bytes:
    """A message as `Records` reads it."""
    return LENGTH.pack(len(message)) + message
