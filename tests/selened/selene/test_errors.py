# SPDX-License-Identifier: Apache-2.0
"""What is refused, with which number and which words."""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import selene
from selened import wire
from selened.wire import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    Until = Callable[[Callable[[], object], str], None]
    Pair = tuple[selene.Source, selene.Sink]
    Connect = Callable[..., Pair]

PATIENCE_S = 10.0


def test_no_daemon_says_how_to_start_one(tmp_path: Any) -> None:
    with pytest.raises(selene.SeleneError, match="Start it with: selened") as caught:
        selene.Session(tmp_path / "nobody.sock")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, OSError)
    with pytest.raises(selene.SeleneError, match="accepted 107"):
        selene.Session("/tmp/" + "x" * 200)


def test_who_is_refused_before_its_greeting_was_read_learns_why(tmp_path: Any) -> None:
    """The daemon may have said no and closed before, while or after the greeting is sent."""
    path, times = tmp_path / "full.sock", 300
    refusal = wire.build("selene_error", lib.SELENE_S_ERROR, 1, error=errno.EUSERS, text=b"the house is full")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse() -> None:
            for _ in range(times):
                connection, _ = listener.accept()
                with connection:
                    connection.send(refusal)

        thread = threading.Thread(target=refuse)
        thread.start()
        for _ in range(times):
            with pytest.raises(selene.SeleneError, match="the house is full") as caught:
                selene.Session(path)
            assert caught.value.errno == errno.EUSERS
        thread.join(PATIENCE_S)


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


def test_too_long_a_message_is_refused(pair: Pair) -> None:
    source, sink = pair
    for call in (lambda n: source.send(bytes(n)), source.get, lambda n: source.send_many([bytes(n)])):
        with pytest.raises(selene.SeleneError, match="at most 65536 bytes") as caught:
            call(selene.MAX_MESSAGE + 1)
        assert caught.value.errno == errno.EMSGSIZE
    assert source.send_many([b"a", bytes(selene.MAX_MESSAGE + 1), b"c"]) == 1
    assert bytes(sink.consume(PATIENCE_S)) == b"a"
    assert sink.try_consume() is None


def test_old_outcomes_are_forgotten_and_unknown_tokens_refused(pair: Pair) -> None:
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
