# SPDX-License-Identifier: Apache-2.0
"""The Python client: messages, borrowed memory, callbacks, errors, threads, ends."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import selene
from selene._selene import ffi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Until = Callable[[Callable[[], object], str], None]

PATIENCE_S = 10.0


@pytest.fixture
def session(shared_daemon: Any) -> Iterator[selene.Session]:
    with selene.Session(shared_daemon.path, program="pytest") as made:
        yield made


@pytest.fixture
def relayed(shared_daemon: Any) -> Iterator[selene.Session]:
    with selene.Session(shared_daemon.path, relayed=True) as made:
        yield made


@pytest.fixture
def stream(session: selene.Session) -> selene.Stream:
    return session.stream(stream=1)


@pytest.fixture
def pair(stream: selene.Stream, until: Until) -> tuple[selene.Source, selene.Sink]:
    """A source, and a sink that hears it."""
    return connect(stream, until)


def connect(stream: selene.Stream, until: Until, channel: int = 7, **sink: Any) -> tuple[selene.Source, selene.Sink]:
    made = stream.source(channel=channel), stream.sink(channel=channel, **sink)
    until(lambda: made[0].stats().local_sinks == 1, "the sink at the source")
    return made


# ---- Messages ----


def test_a_message_arrives_as_it_was_sent(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    before = time.time_ns()
    token = source.send(b"hello")
    assert source.outcome(token) == "sent"
    with sink.consume(PATIENCE_S) as message:
        assert bytes(message) == bytes(message.data) == b"hello"
        assert (message.size, len(message), message.sequence, message.source) == (5, 5, 0, source.id)
        assert before <= message.sent_ns <= time.time_ns()
    assert message.sequence == 0, "what is not memory stays known"


@pytest.mark.parametrize("size", [0, 1, 255, 4096, selene.MAX_MESSAGE])
def test_messages_of_every_size(pair: tuple[selene.Source, selene.Sink], size: int) -> None:
    source, sink = pair
    content = os.urandom(size)
    source.send(content)
    with sink.consume(PATIENCE_S) as message:
        assert bytes(message) == content


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_can_be_sent(pair: tuple[selene.Source, selene.Sink], make: Any) -> None:
    source, sink = pair
    source.send(make(b"abc"))
    assert bytes(sink.consume(PATIENCE_S)) == b"abc"


def test_a_buffer_is_emitted_at_the_end_of_its_block_and_cancelled_by_an_exception(
    pair: tuple[selene.Source, selene.Sink],
) -> None:
    source, sink = pair
    with pytest.raises(ZeroDivisionError), source.get(8) as buffer:
        buffer.data[0] = 1 // 0
    with source.get(8) as buffer:
        buffer.data[:4] = b"this"
        buffer.size = 4
    assert bytes(sink.consume(PATIENCE_S)) == b"this"
    assert source.stats().messages == 1
    with source.get(1) as buffer:
        buffer.cancel()
    assert sink.try_consume() is None


def test_bursts_keep_order_and_content(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    contents = [bytes([i]) * (i + 1) for i in range(100)]
    assert source.send_many(contents) == 100
    received: list[bytes] = []
    while len(received) < 100:
        with sink.consume_many(30, PATIENCE_S) as messages:
            assert 1 <= len(messages) <= 30
            received += [bytes(message) for message in messages]
    assert received == contents
    assert sink.consume_many(30, 0) == []


def test_a_burst_can_be_released_in_parts(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    source.send_many([b"a", b"b", b"c"])
    messages = sink.consume_many(3, PATIENCE_S)
    messages[1].release()
    assert bytes(messages[2]) == b"c"
    messages.release()
    messages.release()
    with pytest.raises(ValueError, match="released"):
        bytes(messages[2])
    assert not sink._late


def test_iterating_releases_and_ends_with_the_sink(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    source.send_many([b"1", b"2", b"3"])
    seen = []
    for message in sink:
        seen.append(message)
        if len(seen) == 3:
            threading.Thread(target=sink.close).start()
    assert [message.sequence for message in seen] == [0, 1, 2]
    with pytest.raises(ValueError, match="released"):
        bytes(seen[0])


def test_named_channels_meet_by_name(stream: selene.Stream, until: Until) -> None:
    source, other = stream.source(name="temp/ä"), stream.sink(name="temp/b")
    sink = stream.sink(name="temp/ä")
    until(lambda: source.stats().local_sinks == 1, "the sink at the source")
    source.send(b"x")
    assert bytes(sink.consume(PATIENCE_S)) == b"x"
    assert other.try_consume() is None
    assert selene.channel_of("temp/ä") != selene.channel_of("temp/b")


def test_every_sink_gets_every_message(stream: selene.Stream, until: Until) -> None:
    source = stream.source(channel=3)
    sinks = [stream.sink(channel=3) for _ in range(4)]
    until(lambda: source.stats().local_sinks == 4, "four sinks at the source")
    source.send(b"all")
    assert [bytes(sink.consume(PATIENCE_S)) for sink in sinks] == [b"all"] * 4


def test_a_relayed_session_reaches_a_direct_one(session: selene.Session, relayed: selene.Session, until: Until) -> None:
    assert (session.direct, relayed.direct) == (True, False)
    source, sink = relayed.stream().source(channel=1), session.stream().sink(channel=1)
    until(lambda: source.stats().local_sinks == 1, "the sink at the source")
    source.send(b"x")
    assert bytes(sink.consume(PATIENCE_S)) == b"x"


@pytest.mark.parametrize("delivery", ["best-effort", "reliable"])
def test_to_another_host(peers: Any, until: Until, delivery: Any) -> None:
    left, right = peers
    with selene.Session(left.path) as here, selene.Session(right.path) as there:
        source = here.stream(stream=5, delivery=delivery).source(channel=9)
        sink = there.stream(stream=5, delivery=delivery).sink(channel=9)
        until(lambda: source.stats().remote_sinks == 1, "the remote sink at the source")
        until(lambda: sink.stats().remote_sources == 1, "the remote source at the sink")
        contents = [b"%d" % i for i in range(200)]
        assert source.send_many(contents) == 200
        source.flush()
        received: list[bytes] = []
        while len(received) < 200:
            received += [bytes(message) for message in sink.consume_many(64, PATIENCE_S)]
        assert received == contents
        assert sink.stats().lost == 0
        with pytest.raises(selene.SeleneError) as caught:
            source.send(bytes(selene.MAX_MESSAGE))
        assert caught.value.errno == errno.EMSGSIZE


# ---- Borrowed memory ----


def test_a_view_dies_with_its_message(pair: tuple[selene.Source, selene.Sink]) -> None:
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


def test_slices_hold_a_message(pair: tuple[selene.Source, selene.Sink]) -> None:
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


def test_slices_hold_a_buffer(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, _ = pair
    buffer = source.get(4)
    part = buffer.data[1:]
    for call in (buffer.emit, buffer.cancel, source.close):
        with pytest.raises(BufferError):
            call()
    part[:] = b"xyz"
    del part
    assert buffer.emit() == 0


def test_an_exception_wins_over_slices(pair: tuple[selene.Source, selene.Sink]) -> None:
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


def test_dropped_messages_and_buffers_are_given_back(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    for _ in range(20_000):  # more than may be held, and more than the pool has
        source.get(16)
        source.send(b"x")
        assert sink.consume(PATIENCE_S).data[0] == ord("x")
    assert sink.stats().dropped == source.stats().again == 0


def test_data_outlives_a_dropped_message(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    source.send_many([b"abc", b"def"])
    first = sink.consume(PATIENCE_S).data
    assert bytes(sink.consume(PATIENCE_S).data) == b"def"
    assert bytes(first) == b"abc"
    with pytest.raises(BufferError):
        sink.close()
    del first
    sink.close()


def test_close_ends_what_is_borrowed(stream: selene.Stream, until: Until) -> None:
    source, sink = connect(stream, until)
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


def test_a_size_can_be_lowered_only(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, _ = pair
    buffer = source.get(10)
    buffer.size = 4
    assert len(buffer.data) == 4
    buffer.size = 10
    for size in (-1, 11):
        with pytest.raises(ValueError, match="accepted 0 to the 10 bytes"):
            buffer.size = size
    buffer.cancel()


# ---- Waiting ----


def test_a_timeout_is_an_error_of_its_own(pair: tuple[selene.Source, selene.Sink]) -> None:
    _, sink = pair
    for timeout in (0, 0.001, 0.15):
        with pytest.raises(selene.SeleneTimeoutError) as caught:
            sink.consume(timeout)
        assert isinstance(caught.value, TimeoutError)
    assert sink.try_consume() is None
    assert sink.consume_many(5, 0.001) == []
    assert not sink.available()


def test_a_waiting_consumer_is_woken(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    thread = threading.Thread(target=lambda: source.send(b"x"))
    thread.start()
    assert bytes(sink.consume(PATIENCE_S)) == b"x"
    thread.join()


def test_a_descriptor_for_poll_loops(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    received = []
    with selectors.DefaultSelector() as selector:
        selector.register(sink, selectors.EVENT_READ)
        for i in range(10):
            while sink.try_consume() is not None:
                pass
            source.send(b"%d" % i)
            while True:
                assert selector.select(PATIENCE_S)
                if (message := sink.try_consume()) is not None:
                    received.append(bytes(message))
                    break
    assert received == [b"%d" % i for i in range(10)]


def test_a_reliable_source_waits_for_a_slow_sink(session: selene.Session, until: Until) -> None:
    source, sink = connect(session.stream(delivery="reliable"), until)
    count = 5000
    with pytest.raises(selene.SeleneAgainError) as caught:  # noqa: PT012 - it takes many to fill the ring
        for _ in range(count):
            source.send(b"x", wait=False)
    assert isinstance(caught.value, BlockingIOError)
    filled = source.stats().messages
    thread = threading.Thread(target=lambda: source.send_many([b"x"] * (count - filled)))
    thread.start()
    sequences: list[int] = []
    while len(sequences) < count:
        with sink.consume_many(64, PATIENCE_S) as messages:
            assert messages
            sequences += [message.sequence for message in messages]
    thread.join()
    assert sequences == list(range(count))
    assert source.stats().again > 0


def test_a_best_effort_source_counts_what_a_slow_sink_misses(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    assert source.send_many([b"x"] * 3000) == 3000
    dropped = source.stats().dropped_slow
    assert dropped > 0
    assert sink.stats().dropped == dropped
    while sink.try_consume() is not None:
        pass
    source.send(b"x")
    sink.consume(PATIENCE_S)
    assert sink.stats().lost == dropped


# ---- Callbacks ----


def test_a_callback_runs_in_the_library_thread(stream: selene.Stream, until: Until) -> None:
    seen: list[tuple[bytes, int, str]] = []

    def callback(message: selene.Message) -> None:
        seen.append((bytes(message.data), message.sequence, threading.current_thread().name))

    source, sink = connect(stream, until, callback=callback)
    source.send_many([b"a", b"b"])
    until(lambda: len(seen) == 2, "two messages")
    assert [item[:2] for item in seen] == [(b"a", 0), (b"b", 1)]
    assert seen[0][2] != threading.main_thread().name
    with pytest.raises(selene.SeleneError, match="callback") as caught:
        sink.consume()
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(selene.SeleneError, match="callback"):
        sink.fileno()


def test_poll_runs_callbacks_in_its_own_thread(session: selene.Session, stream: selene.Stream, until: Until) -> None:
    threads: set[int] = set()
    asked = threading.Event()

    def callback(message: selene.Message) -> None:
        threads.add(threading.get_ident())
        if message.sequence >= 100:
            asked.set()

    source, _ = connect(stream, until, callback=callback)
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            source.send(b"x", wait=False)
            time.sleep(0.0001)

    sender = threading.Thread(target=send)
    sender.start()
    until(lambda: session.poll(PATIENCE_S) and threading.get_ident() in threads, "a message in poll")
    stop.set()
    sender.join()
    while session.poll(0.3):
        pass
    assert session.poll(0) == 0


def test_an_exception_in_a_callback_is_logged(
    stream: selene.Stream, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def callback(message: selene.Message) -> None:
        seen.append(message)
        raise RuntimeError("out of cheese")

    with caplog.at_level(logging.ERROR, "selene"):
        source, sink = connect(stream, until, callback=callback)
        source.send_many([b"x", b"y"])
        until(lambda: len(seen) == 2 and len(caplog.records) == 2, "two messages")
    assert f"the callback of sink {sink.id:x} failed" in caplog.text
    assert "out of cheese" in caplog.text
    with pytest.raises(ValueError, match="released"):
        bytes(seen[0])


def test_a_slice_kept_by_a_callback_is_reported_and_holds_the_sink(
    stream: selene.Stream, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[memoryview] = []
    source, sink = connect(stream, until, callback=lambda message: kept.append(message.data[1:]))
    source.send(b"abc")
    until(lambda: caplog.records, "the report")
    assert "must not keep its message" in caplog.text
    with pytest.raises(BufferError):
        sink.close()
    kept.clear()
    sink.close()


def test_a_callback_can_send_and_close_its_own_sink(stream: selene.Stream, until: Until) -> None:
    echo = stream.source(channel=8)
    answers = stream.sink(channel=8)
    until(lambda: echo.stats().local_sinks == 1, "the sink of answers")
    sinks: list[selene.Sink] = []

    def callback(message: selene.Message) -> None:
        echo.send(message.data)
        sinks[0].close()

    source, sink = connect(stream, until, callback=callback)
    sinks.append(sink)
    source.send(b"once")
    assert bytes(answers.consume(PATIENCE_S)) == b"once"
    until(lambda: sink.closed, "the end of the sink")
    assert sink.stats().messages == 1


def test_what_ends_the_program_passes_through_poll(
    session: selene.Session, stream: selene.Stream, until: Until
) -> None:
    main = threading.get_ident()

    def callback(message: selene.Message) -> None:
        if threading.get_ident() == main:
            raise SystemExit(3)

    source, _ = connect(stream, until, callback=callback)
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
    session: selene.Session, stream: selene.Stream, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = connect(stream, until, callback=lambda _: session.close())
    source.send(b"x")
    until(lambda: "a callback cannot close its session" in caplog.text, "the report")


# ---- Errors ----


def test_no_daemon_says_how_to_start_one(tmp_path: Any) -> None:
    with pytest.raises(selene.SeleneError, match="Start it with: selened") as caught:
        selene.Session(tmp_path / "nobody.sock")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, OSError)
    with pytest.raises(selene.SeleneError, match="accepted 107"):
        selene.Session("/tmp/" + "x" * 200)


def test_the_socket_is_found_by_the_environment(shared_daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELENE_SOCKET", str(shared_daemon.path))
    with selene.Session() as session:
        assert session.connected
        assert session.id in {int(record["session"], 16) for record in shared_daemon.info("session")}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"acceleration": "warp"}, "acceleration: found 'warp', accepted slow, fast"),
        ({"delivery": "maybe"}, "accepted best-effort, reliable"),
        ({"stream": -1}, "stream: found -1"),
        ({"time_sensitive": True}, "time"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused(session: selene.Session, policy: Any, said: str) -> None:
    with pytest.raises(selene.SeleneError, match=said):
        session.stream(**policy)


def test_the_daemon_says_what_a_stream_gets(session: selene.Session) -> None:
    stream = session.stream(acceleration="fast")
    assert stream.technology == "udp"
    assert stream.reason


@pytest.mark.parametrize(
    ("channel", "name", "said"),
    [(None, None, "either"), (1, "x", "either"), (-1, None, "accepted 0"), (2**64, None, "accepted 0"),
     (None, "", "1 to 255 bytes"), (None, "ä" * 128, "1 to 255 bytes"), (None, "a\0b", "without NUL")],
)  # fmt: skip
def test_a_channel_is_a_number_or_a_name(stream: selene.Stream, channel: Any, name: Any, said: str) -> None:
    for make in (stream.source, stream.sink):
        with pytest.raises(selene.SeleneError, match=said):
            make(channel, name=name)


def test_too_long_a_message_is_refused(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    for call in (lambda n: source.send(bytes(n)), source.get, lambda n: source.send_many([bytes(n)])):
        with pytest.raises(selene.SeleneError, match="at most 65536 bytes") as caught:
            call(selene.MAX_MESSAGE + 1)
        assert caught.value.errno == errno.EMSGSIZE
    assert source.send_many([b"a", bytes(selene.MAX_MESSAGE + 1), b"c"]) == 1
    assert bytes(sink.consume(PATIENCE_S)) == b"a"
    assert sink.try_consume() is None


def test_old_outcomes_are_forgotten_and_unknown_tokens_refused(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, _ = pair
    for _ in range(50):
        source.send_many([b"x"] * 100)
    with pytest.raises(selene.SeleneError, match="last 4096") as caught:
        source.outcome(0)
    assert caught.value.errno == errno.ESTALE
    assert source.outcome(4999) == "sent"
    for token in (-1, 5000):
        with pytest.raises(selene.SeleneError) as caught:
            source.outcome(token)
        assert caught.value.errno == errno.EINVAL


def test_holding_too_many_messages_is_an_error(session: selene.Session, until: Until) -> None:
    stream = session.stream()
    sink = stream.sink(channel=1)
    held = []
    with pytest.raises(selene.SeleneError, match="release some") as caught:  # noqa: PT012 - until it does
        for channel in range(30):  # a source's quota is smaller than the sink's
            source = stream.source(channel=1)
            until(lambda source=source: source.stats().local_sinks == 1, f"the sink at source {channel}")  # type: ignore[misc]
            source.send_many([b"x"] * 1000)
            while burst := sink.consume_many(100, 0):
                held.append(burst)
    assert caught.value.errno == errno.ENOBUFS


# ---- Counters ----


def test_counters_have_the_names_of_the_c_structs() -> None:
    for counters, struct in ((selene.SourceStats, "selene_source_stats"), (selene.SinkStats, "selene_sink_stats")):
        assert [field.name for field in dataclasses.fields(counters)] == [name for name, _ in ffi.typeof(struct).fields]


def test_counters_can_be_read_by_any_thread_and_after_close(pair: tuple[selene.Source, selene.Sink]) -> None:
    source, sink = pair
    source.send(b"abc")
    sink.consume(PATIENCE_S).release()
    waiting = threading.Thread(target=lambda: sink.consume_many(1))
    waiting.start()
    for _ in range(100):
        assert (sink.stats().messages, sink.stats().bytes, sink.stats().local_sources) == (1, 3, 1)
    source.send(b"x")
    waiting.join()
    source.close()
    sink.close()
    assert source.stats().messages == sink.stats().messages == 2


# ---- Ends ----


def test_everything_is_closed_with_the_session(shared_daemon: Any) -> None:
    with selene.Session(shared_daemon.path) as session:
        stream = session.stream()
        source, sink = stream.source(channel=1), stream.sink(channel=1)
        assert {record["kind"] for record in shared_daemon.ask("info")} >= {"session", "stream", "source", "sink"}
    assert source.closed
    assert sink.closed
    session.close()
    stream.close()
    source.close()
    for call, what in (
        (lambda: session.stream(), "session"), (lambda: stream.source(1), "session"),
        (lambda: session.poll(), "session"), (lambda: source.send(b""), "source"), (lambda: source.get(1), "source"),
        (lambda: source.send_many([]), "source"), (lambda: source.flush(), "source"),
        (lambda: source.outcome(0), "source"), (lambda: sink.consume(), "sink"),
        (lambda: sink.try_consume(), "sink"), (lambda: sink.consume_many(1), "sink"), (lambda: sink.fileno(), "sink"),
    ):  # fmt: skip
        with pytest.raises(selene.SeleneError, match=f"the {what} is closed"):
            call()
    assert list(sink) == []


def test_a_closed_stream_takes_its_endpoints_along(session: selene.Session) -> None:
    with session.stream() as stream, stream.source(channel=1) as source:
        pass
    assert source.closed
    with pytest.raises(selene.SeleneError, match="the stream is closed"):
        stream.source(channel=1)


def test_endpoints_can_come_and_go_without_limit(session: selene.Session, shared_daemon: Any, until: Until) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with session.stream() as stream:
        for _ in range(300):
            with stream.source(channel=1) as source, stream.sink(channel=1):
                source.send(b"x")
    until(lambda: not shared_daemon.info("source") and not shared_daemon.info("sink"), "the end of the last one")
    until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the end of their descriptors")


@pytest.mark.parametrize("what", ["sink", "stream", "session"])
def test_closing_ends_a_consumer_in_another_thread(session: selene.Session, what: str) -> None:
    stream = session.stream()
    sink = stream.sink(channel=1)
    errors: list[selene.SeleneError] = []
    begun = threading.Event()

    def consume() -> None:
        begun.set()
        try:
            sink.consume()
        except selene.SeleneError as error:
            errors.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    begun.wait()
    {"sink": sink, "stream": stream, "session": session}[what].close()  # type: ignore[attr-defined]
    thread.join()
    assert [error.errno for error in errors] == [errno.EBADF]


def test_closing_under_fire(shared_daemon: Any) -> None:
    """Threads in every call while the session is closed: each ends with an error that says so."""
    for _ in range(5):
        strange, threads = _close_under_fire(selene.Session(shared_daemon.path))
        for thread in threads:
            thread.join()
        assert strange == []


def _close_under_fire(session: selene.Session) -> tuple[list[BaseException], list[threading.Thread]]:
    stream = session.stream()
    source, sink = stream.source(channel=1), stream.sink(channel=1)
    stream.sink(channel=1, callback=lambda message: bytes(message.data))
    strange: list[BaseException] = []
    begun = threading.Barrier(5)

    def repeat(call: Callable[[], object]) -> None:
        begun.wait()
        try:
            while True:
                call()
        except (selene.SeleneError, ValueError) as error:
            if "closed" not in str(error) and "released" not in str(error):
                strange.append(error)

    def read() -> None:
        with sink.consume() as message:
            bytes(message.data)

    calls = [lambda: source.send(b"x"), read, lambda: stream.source(channel=2).close(), lambda: session.poll()]
    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait()
    while sink.stats().messages < 100:
        time.sleep(0.001)
    session.close()
    return strange, threads


def test_a_forgotten_session_is_closed_by_the_garbage_collector(shared_daemon: Any, until: Until) -> None:
    def forget() -> None:
        stream = selene.Session(shared_daemon.path).stream()
        stream.sink(channel=1, callback=lambda _: None)
        stream.source(channel=1).get(10)

    forget()
    gc.collect()
    until(lambda: not shared_daemon.info("session"), "the end of the session")


def run(shared_daemon: Any, program: str) -> subprocess.Popen[str]:
    """A Python program with a session: `session`, `stream`."""
    text = (
        "import selene, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        f"session = selene.Session({os.fspath(shared_daemon.path)!r})\n"
        "stream = session.stream()\n"
        "def say(text): print(text, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-c", text + program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "call",
    ["sink.consume()", "sink.consume_many(10)", "list(sink)", "session.poll()", "reliable.send_many([b'x'] * 5000)"],
)
def test_an_interrupt_ends_a_waiting_call(shared_daemon: Any, call: str) -> None:
    process = run(
        shared_daemon,
        "other = session.stream(stream=2, delivery='reliable')\n"
        "sink, reliable = stream.sink(channel=1), other.source(channel=1)\n"
        "full = other.sink(channel=1)\n"
        "while not reliable.stats().local_sinks: pass\n"
        "say('ready')\n"
        f"try:\n    {call}\nexcept KeyboardInterrupt:\n    say('interrupted')\nsession.close()\nsay('closed')\n",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)  # so that it waits; an interrupt before that ends it as well
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, err, process.returncode) == ("interrupted\nclosed\n", "", 0)


@pytest.mark.parametrize(
    "program",
    [
        "stream.source(channel=1).send(b'x')",
        "kept = stream.source(channel=1).get(10).data[1:]",
        "stream.sink(channel=1, callback=lambda m: bytes(m))\nsource = stream.source(channel=1)\n"
        "while not source.stats().local_sinks: pass\nfor _ in range(1000): source.send(b'x')",
        "sink = stream.sink(channel=1)\nthreading.Thread(target=sink.consume, daemon=True).start()",
        "sink = stream.sink(channel=1)\nsource = stream.source(channel=1)\n"
        "while not source.stats().local_sinks: pass\nsource.send(b'x')\nmessage = sink.consume()\nview = message.data",
    ],
)
def test_forgetting_close_leaves_nothing_behind(shared_daemon: Any, until: Until, program: str) -> None:
    process = run(shared_daemon, program)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "Fatal" not in err
    until(lambda: not shared_daemon.info("session"), "the end of the session")


def test_a_killed_client_leaves_nothing_behind(shared_daemon: Any, until: Until) -> None:
    process = run(shared_daemon, "sink = stream.sink(channel=1)\nsay('ready')\nsink.consume()")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    until(lambda: not shared_daemon.info("session"), "the end of the session")


def test_a_session_survives_the_daemon(daemon: Any, until: Until) -> None:
    with selene.Session(daemon.path) as session, session.stream() as stream:
        source, sink = connect(stream, until)
        daemon.stop()
        until(lambda: not session.connected, "the loss of the daemon")
        daemon.start()
        until(lambda: session.connected, "the way back")
        until(lambda: source.stats().local_sinks == 1, "the sink at the source")
        source.send(b"again")
        assert bytes(sink.consume(PATIENCE_S)) == b"again"
