# SPDX-License-Identifier: Apache-2.0
"""lunar.Lunar, on a daemon of the test's own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import selene
from lunar import Lunar
from lunar.mom import _options, _remarks

from libqos.policy import PolicyError, parse
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def moon(daemon: Any) -> Iterator[Lunar]:
    with Lunar(socket=daemon.socket, qos="slow,delivery=reliable") as opened:
        yield opened


def test_publish_and_consume(moon: Lunar) -> None:
    inbox = moon.subscribe("a")
    before = time.time_ns()
    assert moon.publish("a", b"one") == 0
    assert moon.publish("a", memoryview(b"two")) == 1
    assert moon.publish_many("a", [b"three", b""]) == 2
    with inbox.consume_many(4, timeout=10) as messages:
        got = [(bytes(message), message.sequence) for message in messages]
        assert before < messages[0].sent_ns < time.time_ns()
    assert got == [(b"one", 0), (b"two", 1), (b"three", 2), (b"", 3)]


def test_publish_by_filling_the_buffer(moon: Lunar) -> None:
    inbox = moon.subscribe("a")

    def fill(buffer: memoryview) -> int:
        assert len(buffer) == 8
        buffer[:3] = b"abc"
        return 3

    assert moon.publish("a", fill, 8) == 0
    with inbox.consume(timeout=10) as message:
        assert bytes(message) == b"abc"


def test_nothing_is_published_when_the_filler_says_so(moon: Lunar) -> None:
    inbox = moon.subscribe("a")
    assert moon.publish("a", lambda _: -1, 8) is None
    with pytest.raises(ValueError, match="size"):
        moon.publish("a", lambda _: 9, 8)
    with pytest.raises(ZeroDivisionError):
        moon.publish("a", lambda _: 1 // 0, 8)
    with pytest.raises(TypeError, match="size of the buffer"):
        moon.publish("a", lambda _: 0)
    assert moon.publish("a", b"only this") == 0
    with inbox.consume(timeout=10) as message:
        assert bytes(message) == b"only this"
    assert inbox.try_consume() is None


def test_filler_may_publish(moon: Lunar) -> None:
    inbox = moon.subscribe("a")

    def fill(buffer: memoryview) -> int:
        moon.publish("a", b"inner")
        buffer[:5] = b"outer"
        return 5

    assert moon.publish("a", fill, 5) == 1
    with inbox.consume_many(2, timeout=10) as messages:
        assert [bytes(message) for message in messages] == [b"inner", b"outer"]


def test_callback(moon: Lunar) -> None:
    got: list[tuple[str, bytes, int]] = []
    done = threading.Event()

    def keep(topic: str, data: memoryview, sent_ns: int, sequence: int) -> None:
        assert 0 < sent_ns <= time.time_ns()
        got.append((topic, bytes(data), sequence))
        if len(got) == 3:
            done.set()

    subscription = moon.subscribe("a", keep)
    moon.publish_many("a", [b"one", b"two", b"three"])
    assert done.wait(20)
    subscription.close()
    moon.publish("a", b"nobody hears this")
    assert got == [("a", b"one", 0), ("a", b"two", 1), ("a", b"three", 2)]


def test_answer_from_a_callback(moon: Lunar) -> None:
    answers = moon.subscribe("answer")
    moon.subscribe("question", lambda _topic, data, *_: moon.publish("answer", bytes(data).upper()))
    moon.publish("question", b"why")
    with answers.consume(timeout=20) as message:
        assert bytes(message) == b"WHY"


def test_subscribers(moon: Lunar, daemon: Any) -> None:
    assert moon.subscribers("a") == 0
    assert not moon.wait_for_subscriber("a", timeout=0)
    with Lunar(socket=daemon.socket) as other:
        other.subscribe("a")
        assert moon.wait_for_subscriber("a", timeout=20)
        moon.subscribe("a")
        assert moon.subscribers("a") == 2


@pytest.mark.parametrize("topic", ["", "t" * 256, "with\0zero"])
def test_bad_topic(moon: Lunar, topic: str) -> None:
    with pytest.raises(selene.SeleneError):
        moon.publish(topic, b"x")
    with pytest.raises(selene.SeleneError):
        moon.subscribe(topic)


def test_one_source_per_topic(moon: Lunar, daemon: Any) -> None:
    for _ in range(3):
        moon.publish("a", b"x")
        moon.publish("b", b"x")
    assert sorted(record["name"] for record in daemon.info("source")) == ["a", "b"]
    moon.flush()


def test_too_long(moon: Lunar) -> None:
    with pytest.raises(selene.SeleneError, match="65536"):
        moon.publish("a", bytes(65_537))


def test_closed(daemon: Any) -> None:
    moon = Lunar(socket=daemon.socket)
    moon.close()
    moon.close()
    with pytest.raises(selene.SeleneError):
        moon.publish("a", b"x")


def test_refused_quality_leaves_no_session(daemon: Any) -> None:
    with pytest.raises(selene.SeleneError):
        Lunar(socket=daemon.socket, qos="tc5")  # time sensitive: not there yet
    with pytest.raises(PolicyError):
        Lunar(socket=daemon.socket, qos="quick")
    # The daemon learns of the end by the closed socket, in its own time.
    wait_until(lambda: daemon.info("session") == [], "the end of the session")


@pytest.mark.parametrize(
    ("qos", "delivery", "remarks"),
    [
        ("slow", "best-effort", 0),
        ("delivery=at-most-once", "best-effort", 0),
        ("delivery=reliable", "reliable", 0),
        ("data", "reliable", 1),
        ("control,priority=99,scheduler=fifo", "reliable", 2),
    ],
)
def test_delivery(qos: str, delivery: str, remarks: int) -> None:
    assert _options(parse(qos), 0)["delivery"] == delivery
    assert len(_remarks(parse(qos))) == remarks


def test_quality_of_the_stream() -> None:
    assert _options(parse("fast"), 3) == {
        "stream": 3, "acceleration": "fast", "resources": "any", "delivery": "best-effort", "traffic_class": 1,
    }  # fmt: skip
    timed = _options(parse("tc5,period=1ms,offset=200us"), 0)
    assert (timed["time_sensitive"], timed["period_ns"], timed["offset_ns"]) == (True, 1_000_000, 200_000)
