# SPDX-License-Identifier: Apache-2.0
"""Callbacks: in whose thread, what they may do, and what becomes of their exceptions."""

from __future__ import annotations

import errno
import logging
import threading
from typing import TYPE_CHECKING

import pytest
import selene

if TYPE_CHECKING:
    from collections.abc import Callable

    Until = Callable[[Callable[[], object], str], None]
    Pair = tuple[selene.Source, selene.Sink]
    Connect = Callable[..., Pair]

PATIENCE_S = 10.0


def test_a_callback_runs_in_the_library_thread(stream: selene.Stream, connect: Connect, until: Until) -> None:
    seen: list[tuple[bytes, int, str]] = []

    def callback(message: selene.Message) -> None:
        seen.append((bytes(message.data), message.sequence, threading.current_thread().name))

    source, sink = connect(stream, callback=callback)
    source.send_many([b"a", b"b"])
    until(lambda: len(seen) == 2, "two messages")
    assert [item[:2] for item in seen] == [(b"a", 0), (b"b", 1)]
    assert seen[0][2] != threading.main_thread().name
    with pytest.raises(selene.SeleneError, match="callback") as caught:
        sink.consume()
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(selene.SeleneError, match="callback"):
        sink.fileno()


def test_poll_runs_callbacks_in_its_own_thread(
    session: selene.Session, stream: selene.Stream, connect: Connect, until: Until
) -> None:
    threads: set[int] = set()
    source, _ = connect(stream, callback=lambda _: threads.add(threading.get_ident()))
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            source.send(b"x", wait=False)
            stop.wait(0.0001)

    sender = threading.Thread(target=send)
    sender.start()
    until(lambda: session.poll(PATIENCE_S) and threading.get_ident() in threads, "a message in poll")
    stop.set()
    sender.join()
    while session.poll(0.3):
        pass
    assert session.poll(0) == 0


def test_an_exception_in_a_callback_is_logged(
    stream: selene.Stream, connect: Connect, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def callback(message: selene.Message) -> None:
        seen.append(message)
        raise RuntimeError("out of cheese")

    with caplog.at_level(logging.ERROR, "selene"):
        source, sink = connect(stream, callback=callback)
        source.send_many([b"x", b"y"])
        until(lambda: len(seen) == 2 and len(caplog.records) == 2, "two messages")
    assert f"the callback of sink {sink.id:x} failed" in caplog.text
    assert "out of cheese" in caplog.text
    with pytest.raises(ValueError, match="released"):
        bytes(seen[0])


def test_a_slice_kept_by_a_callback_is_reported_and_holds_the_sink(
    stream: selene.Stream, connect: Connect, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[memoryview] = []
    source, sink = connect(stream, callback=lambda message: kept.append(message.data[1:]))
    source.send(b"abc")
    until(lambda: caplog.records, "the report")
    assert "must not keep its message" in caplog.text
    with pytest.raises(BufferError):
        sink.close()
    kept.clear()
    sink.close()


def test_a_callback_can_send_and_close_its_own_sink(stream: selene.Stream, connect: Connect, until: Until) -> None:
    echo = stream.source(channel=8)
    answers = stream.sink(channel=8)
    until(lambda: echo.stats().local_sinks == 1, "the sink of answers")
    sinks: list[selene.Sink] = []

    def callback(message: selene.Message) -> None:
        echo.send(message.data)
        sinks[0].close()

    source, sink = connect(stream, callback=callback)
    sinks.append(sink)
    source.send(b"once")
    assert bytes(answers.consume(PATIENCE_S)) == b"once"
    until(lambda: sink.closed, "the end of the sink")
    assert sink.stats().messages == 1


def test_what_ends_the_program_passes_through_poll(
    session: selene.Session, stream: selene.Stream, connect: Connect
) -> None:
    main = threading.get_ident()

    def callback(message: selene.Message) -> None:
        if threading.get_ident() == main:
            raise SystemExit(3)

    source, _ = connect(stream, callback=callback)
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.0005):
            source.send(b"x")

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SystemExit) as caught:  # noqa: PT012 - the library's thread may take some first
        while True:
            session.poll(PATIENCE_S)
    stop.set()
    sender.join()
    assert caught.value.code == 3


def test_a_callback_cannot_close_its_session(
    session: selene.Session, stream: selene.Stream, connect: Connect, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = connect(stream, callback=lambda _: session.close())
    source.send(b"x")
    until(lambda: "a callback cannot close its session" in caplog.text, "the report")
