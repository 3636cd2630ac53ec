# SPDX-License-Identifier: Apache-2.0
"""Messages from source to sink: content, order, bursts, names, other hosts; waiting; counters."""

from __future__ import annotations

import dataclasses
import errno
import os
import selectors
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import selene
from selene._selene import ffi

if TYPE_CHECKING:
    from collections.abc import Callable

    Until = Callable[[Callable[[], object], str], None]
    Pair = tuple[selene.Source, selene.Sink]
    Connect = Callable[..., Pair]

PATIENCE_S = 10.0


# ---- Messages ----


def in_order(source: selene.Source, sink: selene.Sink) -> None:
    """Stamps of one message follow each other; the clock that stamps is some 100 ns off the other."""
    out, into = source.stamps(), sink.stamps()
    assert (out.api_ns, out.system_ns, into.api_ns) == (0, 0, 0)
    for _ in range(20):
        before = time.time_ns()
        source.send(b"x")
        with sink.consume(PATIENCE_S) as message:
            assert message.sent_ns == out.api_ns
        after = time.time_ns()
        way = [before - 10_000, out.api_ns, out.system_ns, into.system_ns, into.api_ns, after + 10_000]
        assert way == sorted(way)


def test_stamps_of_a_local_message(pair: Pair) -> None:
    in_order(*pair)


@pytest.mark.parametrize("relayed", [False, True])
def test_stamps_of_a_message_to_another_host(peers: Any, until: Until, relayed: bool) -> None:
    left, right = peers
    with selene.Session(left.path, relayed=relayed) as here, selene.Session(right.path, relayed=relayed) as there:
        source, sink = here.stream(coalesce=False).source(channel=9), there.stream().sink(channel=9)
        until(lambda: source.stats().remote_sinks == 1, "the remote sink at the source")
        until(lambda: sink.stats().remote_sources == 1, "the remote source at the sink")
        in_order(source, sink)


def test_a_message_arrives_as_it_was_sent(pair: Pair) -> None:
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
def test_messages_of_every_size(pair: Pair, size: int) -> None:
    source, sink = pair
    content = os.urandom(size)
    source.send(content)
    with sink.consume(PATIENCE_S) as message:
        assert bytes(message) == content


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_can_be_sent(pair: Pair, make: Any) -> None:
    source, sink = pair
    source.send(make(b"abc"))
    assert bytes(sink.consume(PATIENCE_S)) == b"abc"


def test_a_buffer_is_emitted_at_the_end_of_its_block_and_cancelled_by_an_exception(
    pair: Pair,
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


def test_bursts_keep_order_and_content(pair: Pair) -> None:
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


def test_a_burst_can_be_released_in_parts(pair: Pair) -> None:
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


def test_iterating_releases_and_ends_with_the_sink(pair: Pair) -> None:
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


# ---- Waiting ----


def test_a_timeout_is_an_error_of_its_own(pair: Pair) -> None:
    _, sink = pair
    for timeout in (0, 0.001, 0.15):
        with pytest.raises(selene.SeleneTimeoutError) as caught:
            sink.consume(timeout)
        assert isinstance(caught.value, TimeoutError)
    assert sink.try_consume() is None
    assert sink.consume_many(5, 0.001) == []
    assert not sink.available()


def test_a_waiting_consumer_is_woken(pair: Pair) -> None:
    source, sink = pair
    thread = threading.Thread(target=lambda: source.send(b"x"))
    thread.start()
    assert bytes(sink.consume(PATIENCE_S)) == b"x"
    thread.join()


def test_a_descriptor_for_poll_loops(pair: Pair) -> None:
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


def test_a_reliable_source_waits_for_a_slow_sink(session: selene.Session, connect: Connect) -> None:
    source, sink = connect(session.stream(delivery="reliable"))
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


def test_a_best_effort_source_counts_what_a_slow_sink_misses(pair: Pair, shared_daemon: Any, until: Until) -> None:
    source, sink = pair
    assert source.send_many([b"x"] * 3000) == 3000
    dropped = source.stats().dropped_slow
    assert dropped > 0
    assert sink.stats().dropped == dropped

    def reported() -> int:
        records = {record.get("id"): record for record in shared_daemon.ask("stats")}
        return int(records[f"{sink.id:016x}"]["dropped"])

    until(lambda: reported() == dropped, "the drops in the daemon's report")
    source.close()
    sink.consume_many(1024, PATIENCE_S).release()
    until(lambda: sink.try_consume() is None and sink.stats().local_sources == 0, "the end of the edge")
    assert (sink.stats().dropped, reported()) == (dropped, dropped)


def test_what_a_slow_sink_misses_shows_as_lost(pair: Pair) -> None:
    source, sink = pair
    source.send_many([b"x"] * 3000)
    dropped = source.stats().dropped_slow
    while sink.try_consume() is not None:
        pass
    source.send(b"x")
    sink.consume(PATIENCE_S)
    assert sink.stats().lost == dropped


# ---- Counters ----


def test_counters_have_the_names_of_the_c_structs() -> None:
    for counters, struct in ((selene.SourceStats, "selene_source_stats"), (selene.SinkStats, "selene_sink_stats")):
        assert [field.name for field in dataclasses.fields(counters)] == [name for name, _ in ffi.typeof(struct).fields]


def test_counters_can_be_read_by_any_thread_and_after_close(pair: Pair) -> None:
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


def test_many_sources_with_several_sinks_leave_buffers_for_messages(session: selene.Session, until: Until) -> None:
    """Sinks of one source share a ring, which takes a buffer of 256: not for every source of this session."""
    stream = session.stream(delivery="reliable")
    channels = range(1000, 1120)
    sinks = [[stream.sink(channel=channel) for _ in range(2)] for channel in channels]
    sources = [stream.source(channel=channel) for channel in channels]
    until(lambda: all(source.stats().local_sinks == 2 for source in sources), "all sinks")
    for number in range(3):
        for source in sources:
            source.send(bytes([number]) * 40_000)
        for pair in sinks:
            for sink in pair:
                with sink.consume(PATIENCE_S) as message:
                    assert bytes(message) == bytes([number]) * 40_000
