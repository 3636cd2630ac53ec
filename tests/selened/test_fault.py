# SPDX-License-Identifier: Apache-2.0
"""Two hosts over a network that is bad on purpose: what sinks count is what the fault datapath says it did."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
import selene

from tests.selened.conftest import connected
from tests.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COUNT = 150  # so few that no source runs out of credit and asks for it: a probe is a datagram too
SIZE = 64
DIRECTION = {"sending": "tx", "receiving": "rx"}


@pytest.fixture
def hosts(make_daemon: Callable[..., Any], until: Any) -> Callable[..., tuple[Any, Any]]:
    """`hosts(sending, receiving)`: two daemons, each with its [fault] table."""

    def make(sending: str = "", receiving: str = "") -> tuple[Any, Any]:
        ports = free_port(), free_port()
        made = [
            make_daemon(name, f'{table}\n[[peers]]\naddress = "127.0.0.1"\nport = {other}\n', port=own).start()
            for name, table, own, other in zip(
                ("left", "right"), (sending, receiving), ports, reversed(ports), strict=True
            )
        ]
        for daemon in made:
            until(lambda daemon=daemon: connected(daemon), "the connection of the peers")
        return made[0], made[1]

    return make


@contextlib.contextmanager
def channel(
    hosts: tuple[Any, Any], until: Any, *, relayed: bool = False, delivery: Any = "best-effort"
) -> Iterator[tuple[selene.Source, selene.Sink]]:
    """A source on one host and a sink on the other; each message is a datagram."""
    with (
        selene.Session(hosts[0].path, relayed=relayed) as sender,
        selene.Session(hosts[1].path, relayed=relayed) as receiver,
    ):
        sink = receiver.stream(stream=1, delivery=delivery, coalesce=False).sink(channel=5)
        source = sender.stream(stream=1, delivery=delivery, coalesce=False).source(channel=5)
        until(lambda: source.stats().remote_sinks == 1, "the sink at the source")
        yield source, sink


def faults_of(daemon: Any, *, relayed: bool) -> dict[str, int]:
    """What was done to the datagrams of the only session of a host, or of its datapath process."""
    record: dict[str, int]
    [record] = [row for row in daemon.ask("stats") if row["kind"] == "fault" and ("session" in row) != relayed]
    return record


def payload(number: int) -> bytes:
    return number.to_bytes(4, "little") * (SIZE // 4)


def take_all(sink: selene.Sink, into: list[tuple[int, bytes]]) -> None:
    while (message := sink.try_consume()) is not None:
        with message:
            into.append((message.sequence, bytes(message)))


# ---- What sinks count ----


@pytest.mark.parametrize("relayed", [False, True], ids=["direct", "relayed"])
@pytest.mark.parametrize("side", ["sending", "receiving"])
def test_a_sink_counts_what_was_done_to_its_datagrams(hosts: Any, until: Any, side: str, relayed: bool) -> None:
    # With this seed nothing happens to the first and the last messages, which a sink could not tell from no messages.
    table = f'[fault]\nloss = 0.1\nduplicate = 0.1\nreorder = 0.1\nseed = 1\ndirection = "{DIRECTION[side]}"\n'
    pair = hosts(**{side: table})
    faulty = pair[side == "receiving"]
    received: list[tuple[int, bytes]] = []
    with channel(pair, until, relayed=relayed) as (source, sink):
        for number in range(COUNT):
            source.send(payload(number))

        def all_are_there() -> bool:
            take_all(sink, received)
            done = faults_of(faulty, relayed=relayed)
            return sink.stats().datagrams == COUNT - done["lost"] + done["duplicated"]

        until(all_are_there, "what was not lost")
        done, sent, got = faults_of(faulty, relayed=relayed), source.stats(), sink.stats()
    assert sent.datagrams == COUNT
    assert sent.dropped == sent.failed == got.dropped == got.refused == done["failed"] == 0
    assert min(done["lost"], done["duplicated"], done["reordered"]) > 5
    assert (got.lost, got.duplicated, got.reordered) == (done["lost"], done["duplicated"], done["reordered"])
    numbers = [number for number, _ in received]
    assert (numbers[0], max(numbers), len(numbers)) == (0, COUNT - 1, COUNT - done["lost"])
    assert len(set(numbers)) == len(numbers)
    assert all(content == payload(number) for number, content in received), "every message is whole, and itself"


def arrivals(pair: tuple[Any, Any], until: Any) -> list[int]:
    """The sequence of the messages that arrive of COUNT."""
    received: list[tuple[int, bytes]] = []
    with channel(pair, until) as (source, sink):
        source.send_many([payload(number) for number in range(COUNT)])

        def all_are_there() -> bool:
            take_all(sink, received)
            done = faults_of(pair[0], relayed=False)
            return sink.stats().datagrams == COUNT - done["lost"] + done["duplicated"]

        until(all_are_there, "what was not lost")
    return [number for number, _ in received]


def test_the_same_seed_does_the_same(hosts: Any, until: Any) -> None:
    pair = hosts('[fault]\nloss = 0.1\nduplicate = 0.1\nseed = 8\ndirection = "tx"\n')
    first = arrivals(pair, until)
    assert 0 < len(first) < COUNT
    assert arrivals(pair, until) == first


# ---- Reliable: credit, and no retransmission ----


@pytest.mark.parametrize("relayed", [False, True], ids=["direct", "relayed"])
def test_a_reliable_source_neither_drops_nor_hangs_when_data_and_credit_are_lost(
    hosts: Any, until: Any, relayed: bool
) -> None:
    table = "[fault]\nloss = 0.1\nduplicate = 0.05\nreorder = 0.05\ndelay_us = 500\njitter_us = 500\nseed = 4\n"
    count, size = 1000, 4000  # several windows
    received: list[tuple[int, bytes]] = []
    with channel(hosts(table, table), until, relayed=relayed, delivery="reliable") as (source, sink):

        def send() -> None:
            for number in range(count + 300):  # any of the latter says that the others have come or are lost
                source.send(number.to_bytes(4, "little") * (size // 4))

        sender = threading.Thread(target=send, daemon=True)
        sender.start()

        def last_ones_have_come() -> bool:
            with contextlib.suppress(selene.SeleneTimeoutError):
                for _ in range(100):  # all that is there, before the time is looked at again
                    with sink.consume(0.1) as message:
                        received.append((message.sequence, bytes(message)))
            return not sender.is_alive() and received[-1][0] > count + 100

        until(last_ones_have_come, "the messages of a source that waits for credit")
        sent, got = source.stats(), sink.stats()
    assert sent.dropped == sent.failed == got.dropped == got.refused == 0
    numbers = [number for number, _ in received]
    assert len(set(numbers)) == len(numbers), "no message comes twice"
    arrived = {number: content for number, content in received if number < count}
    assert count // 2 < len(arrived) < count, "what the network loses is lost: reliable is credit, no retransmission"
    assert all(content == number.to_bytes(4, "little") * (size // 4) for number, content in arrived.items())
    assert got.lost >= count - numbers[0] - len(arrived), "and counted"


# ---- Corruption ----


@pytest.mark.parametrize("relayed", [False, True], ids=["direct", "relayed"])
def test_corruption_is_refused_or_is_one_bit(hosts: Any, until: Any, relayed: bool) -> None:
    pair = hosts('[fault]\ncorrupt = 0.3\nseed = 6\ndirection = "tx"\n')
    received: list[bytes] = []
    with channel(pair, until, relayed=relayed) as (source, sink):
        content = payload(0x5AA55AA5)

        def enough() -> bool:
            source.send(content)
            with contextlib.suppress(selene.SeleneTimeoutError), sink.consume(0.01) as message:
                received.append(bytes(message))
            return len(received) > COUNT and received[-1] == content

        until(enough, "messages that arrive whole")
        done = faults_of(pair[0], relayed=relayed)
        datapath = next(row for row in pair[1].ask("stats") if row["kind"] == "datapath")
        refused = sink.stats().refused + sum(datapath[name] for name in ("rx_rubbish", "rx_version", "rx_unknown"))
    altered = [message for message in received if message != content]
    assert 0 < len(altered) < done["corrupted"], "some were refused"
    assert refused > 0 or not relayed, "and counted; by a direct session for itself"
    for message in altered:
        # a bit of the payload, or of the length in front of it: then a part of it
        same_length = message if len(message) == len(content) else content[: len(message)]
        assert sum((a ^ b).bit_count() for a, b in zip(same_length, content, strict=False)) <= 1
        assert len(message) <= len(content)


# ---- Saying so ----


def test_faults_are_said_in_log_info_and_explain(make_daemon: Any) -> None:
    daemon = make_daemon("s", "[fault]\nloss = 0.015\ndelay_us = 2000\n").start()
    text = "loss=0.015,delay=2000us,hold=10000us,seed=0,direction=both"
    assert f"fault injection: datagrams to and from other hosts meet {text}; remove [fault]" in daemon.said()
    assert "datagrams of relayed sessions meet " + text in daemon.said()
    assert daemon.info("daemon")[0]["fault"] == text
    with selene.Session(daemon.path) as session:
        assert session.direct
        assert [record["fault"] for record in daemon.ask("explain")] == [text]


def test_without_the_table_nothing_is_said_of_faults(daemon: Any) -> None:
    with selene.Session(daemon.path):
        assert "fault" not in daemon.ask("explain")[0]
        assert daemon.info("daemon")[0]["fault"] is None
        assert not [record for record in daemon.ask("stats") if record["kind"] == "fault"]
    assert "fault" not in daemon.said()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("loss = 1.5", "s.toml:2: fault.loss: found 1.5, accepted a number from 0 to 1"),
        ("delay_us = -1", "s.toml:2: fault.delay_us: found -1, accepted an integer from 0 to 60_000_000"),
        ('direction = "up"', "s.toml:2: fault.direction: found 'up', accepted tx | rx | both"),
        ("los = 1", "s.toml:2: fault.los: unknown key (did you mean loss?)"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_place(make_daemon: Any, table: str, complaint: str) -> None:
    daemon = make_daemon("s", f"[fault]\n{table}\n")
    done = subprocess.run([*daemon.command(), "--check"], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_selened_dp_refuses_faults_that_mean_nothing(bin_dir: Any, tmp_path: Any) -> None:
    command = [bin_dir / "selened-dp", "--socket", tmp_path / "s", "--fault", "loss=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert "--fault loss=2: loss: found '2', accepted a probability from 0 to 1" in done.stderr
