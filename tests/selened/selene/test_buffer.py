# SPDX-License-Identifier: Apache-2.0
"""Borrowed memory: views end when the memory goes, and nothing is lost or kept for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import selene

if TYPE_CHECKING:
    from collections.abc import Callable

    Until = Callable[[Callable[[], object], str], None]
    Pair = tuple[selene.Source, selene.Sink]
    Connect = Callable[..., Pair]

PATIENCE_S = 10.0


def test_a_view_dies_with_its_message(pair: Pair) -> None:
    source, sink = pair
    buffer = source.get(4)
    written = buffer.data
    written[:] = b"abcd"
    buffer.emit()
    message = sink.consume(PATIENCE_S)
    read = message.data
    assert read.readonly
    assert bytes(read) == b"abcd"
    message.release()
    message.release()
    for view in (written, read):
        with pytest.raises(ValueError, match="released"):
            view[0]
    for item in (buffer, message):
        with pytest.raises(ValueError, match="released"):
            _ = item.data


def test_slices_hold_a_message(pair: Pair) -> None:
    source, sink = pair
    source.send(b"abcd")
    message = sink.consume(PATIENCE_S)
    part = message.data[1:]
    with pytest.raises(BufferError, match="copy with bytes"):
        message.release()
    with pytest.raises(BufferError, match="copy with bytes"):
        sink.close()
    assert bytes(part) == b"bcd", "still there"
    del part
    message.release()
    sink.close()


def test_slices_hold_a_buffer(pair: Pair) -> None:
    source, _ = pair
    buffer = source.get(4)
    part = buffer.data[1:]
    for call in (buffer.emit, buffer.cancel, source.close):
        with pytest.raises(BufferError):
            call()
    part[:] = b"xyz"
    del part
    assert buffer.emit() == 0


def test_an_exception_wins_over_slices(pair: Pair) -> None:
    source, sink = pair
    source.send(b"abcd")
    parts: list[memoryview] = []

    def fail() -> None:
        with sink.consume(PATIENCE_S) as message:
            parts.append(message.data[1:])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sink.try_consume() is None
    assert len(sink._late) == 1, "kept as long as the slice lives"
    assert bytes(parts[0]) == b"bcd"
    parts.clear()
    assert sink.try_consume() is None
    assert not sink._late


def test_dropped_messages_and_buffers_are_given_back(pair: Pair) -> None:
    source, sink = pair
    for _ in range(20_000):  # more than may be held, and more than the pool has
        source.get(16)
        source.send(b"x")
        assert sink.consume(PATIENCE_S).data[0] == ord("x")
    assert sink.stats().dropped == source.stats().again == 0


def test_data_outlives_a_dropped_message(pair: Pair) -> None:
    source, sink = pair
    source.send_many([b"abc", b"def"])
    first = sink.consume(PATIENCE_S).data
    assert bytes(sink.consume(PATIENCE_S).data) == b"def"
    assert bytes(first) == b"abc"
    with pytest.raises(BufferError):
        sink.close()
    del first
    sink.close()


def test_close_ends_what_is_borrowed(stream: selene.Stream, connect: Connect) -> None:
    source, sink = connect(stream)
    source.send_many([b"abcd", b"efgh"])
    message, unseen = sink.consume(PATIENCE_S), sink.consume(PATIENCE_S)
    buffer = source.get(4)
    views = [message.data, buffer.data]
    sink.close()
    source.close()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    for item in (message, unseen):
        with pytest.raises(ValueError, match="released"):
            bytes(item)
        item.release()
    with pytest.raises(selene.SeleneError, match="the source is closed"):
        buffer.emit()
    buffer.cancel()


def test_a_size_can_be_lowered_only(pair: Pair) -> None:
    source, _ = pair
    buffer = source.get(10)
    buffer.size = 4
    assert len(buffer.data) == 4
    buffer.size = 10
    for size in (-1, 11):
        with pytest.raises(ValueError, match="accepted 0 to the 10 bytes"):
            buffer.size = size
    buffer.cancel()
