# SPDX-License-Identifier: Apache-2.0
"""Packets, connections with descriptors, and what daemons tell each other: no input does more than raise its error."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket

import pytest
from selened import wire
from selened.peertable import MAX_ENTRIES, Hello, PeerError, Table, announcements, decode, encode, parse_hello
from selened.plans import Key
from selened.seqpacket import Connection, Descriptors
from selened.wire import Address, RefusedError, RubbishError, VersionError, lib

# ---- Packets ----


def test_a_packet_is_what_was_built() -> None:
    data = wire.build(
        "selene_route", lib.SELENE_S_ROUTE, 0, source=1 << 63, epoch=3, count=2,
        dests=[{"address": wire.pack_address(Address("10.1.2.3", 4711)), "window": 5}, {"window": 6}],
    )  # fmt: skip
    assert wire.header(data) == (lib.SELENE_S_ROUTE, 0)
    first, second = wire.records("selene_route", "selene_dest", data)
    assert bytes(first.address.ip) == b"\0" * 10 + b"\xff\xff\x0a\x01\x02\x03"
    assert (first.address.port, first.window, second.window) == (4711, 5, 6)


def test_lengths_are_checked_before_fields_are_read() -> None:
    data = wire.build("selene_hello", lib.SELENE_C_HELLO, 1)
    for size in range(len(data)):
        with pytest.raises(RubbishError):
            wire.header(data[:size])
        with pytest.raises(RubbishError):
            wire.parse("selene_hello", data[:size])
    with pytest.raises(RubbishError):
        wire.parse("selene_hello", data + b"\0")
    stats = wire.build("selene_stats", lib.SELENE_E_STATS, 0, count=3, counters=2)
    with pytest.raises(RubbishError, match="with 3 entries"):
        wire.records("selene_stats", "selene_dp_counters", stats)


def test_another_version_is_told_from_rubbish() -> None:
    data = bytearray(wire.bare(lib.SELENE_C_HELLO))
    data[4] = 9
    with pytest.raises(VersionError, match=f"version 9, accepted {wire.VERSION}"):
        wire.header(bytes(data))
    data[0] ^= 1
    with pytest.raises(RubbishError):
        wire.header(bytes(data))


def test_noise_raises_its_error_only() -> None:
    noise = random.Random(1)
    start = wire.build("selene_hello", lib.SELENE_C_HELLO, 1)
    for _ in range(2000):
        data = bytearray(start)
        for _ in range(noise.randrange(1, 6)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        try:
            wire.header(bytes(data))
        except (RubbishError, VersionError):
            continue
        hello = wire.parse("selene_hello", bytes(data))
        assert isinstance(wire.text_of(hello.program), str)


def test_text_is_never_cut_inside_a_character() -> None:
    assert wire.cut("é" * 400, 512).decode() == "é" * 255
    assert len(wire.error(1, 5, "é" * 9999)) == wire.ffi.sizeof("struct selene_error")


def test_names_are_bounded_text() -> None:
    def named(raw: bytes, length: int | None = None) -> object:
        fields = {"name": raw, "name_length": len(raw) if length is None else length}
        return wire.parse("selene_endpoint_open", wire.build("selene_endpoint_open", lib.SELENE_C_SINK, 1, **fields))

    assert wire.name_of(named("späť".encode())) == "späť"
    assert wire.name_of(named(b"")) == ""
    for raw, length in ((b"a\0b", None), (b"\xff", None), (b"x", 256), (b"x", 1 << 31)):
        with pytest.raises(RefusedError):
            wire.name_of(named(raw, length))


# ---- Connections ----


def run(work: object) -> None:
    asyncio.run(asyncio.wait_for(work, 20))  # type: ignore[arg-type]


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_packets_and_descriptors_arrive_in_order() -> None:
    async def work() -> None:
        left, right = pair()
        sender, receiver = Connection(left), Connection(right)
        read, write = os.pipe()
        sender.send(b"one", [write])
        sender.send(b"two")
        data, descriptors = await receiver.receive()
        with descriptors:
            assert data == b"one"
            taken = descriptors.take(0)
            with pytest.raises(IndexError):
                descriptors.take(0)
        os.write(taken, b"x")
        assert os.read(read, 1) == b"x"
        data, descriptors = await receiver.receive()
        assert (data, len(descriptors)) == (b"two", 0)
        sender.close()
        assert (await receiver.receive())[0] == b""
        for fd in (read, write, taken):
            os.close(fd)
        receiver.close()

    run(work())


def test_descriptors_that_nobody_takes_are_closed() -> None:
    read, write = os.pipe()
    with Descriptors([write]):
        pass
    assert os.read(read, 1) == b"", "the last writer is closed"
    os.close(read)


@pytest.mark.needs_xdp
def test_a_socket_without_a_name_is_closed_too() -> None:
    """getsockname(2) fails for it; some of these families need no privilege."""
    fd = socket.socket(44, socket.SOCK_RAW).detach()  # AF_XDP
    Descriptors([fd]).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_reader_that_sleeps_is_cut_off_after_its_queue() -> None:
    async def work() -> None:
        left, right = pair()
        sender = Connection(left, queue=10)
        count = 0
        while not sender.closed:
            sender.send(bytes(1000))
            count += 1
        assert count > 10
        assert "10 packets unread" in sender.reason
        right.close()

    run(work())


def test_what_waits_is_sent_when_the_reader_wakes() -> None:
    async def work() -> None:
        left, right = pair()
        sender, receiver = Connection(left, queue=100000), Connection(right)
        for number in range(3000):
            sender.send(number.to_bytes(4, "little") + bytes(1000))
        for number in range(3000):
            assert int.from_bytes((await receiver.receive())[0][:4], "little") == number
        sender.close()
        receiver.close()

    run(work())


def test_a_close_ends_a_waiting_receive() -> None:
    async def work() -> None:
        left, right = pair()
        receiver = Connection(right)
        task = asyncio.create_task(receiver.receive())
        await asyncio.sleep(0)
        receiver.close("enough")
        assert (await task)[0] == b""
        left.close()

    run(work())


# ---- What peers say ----

HOST = 0xABCD
KEY = Key(1, 2, "topic")
AT = Address("10.0.0.2", 5000)


def table() -> Table:
    return Table("10.0.0.2", HOST)


def told(number: int, **message: object) -> dict[str, object]:
    return {"n": number, **message}


SINK = [1, 2, "topic", "10.0.0.2", 5000, 70000]
SOURCE = [1, 2, "topic", HOST << 32 | 7, "10.0.0.2", 5000]


def test_announcements_come_back_as_they_were() -> None:
    messages = [
        json.loads(encode(item))
        for item in announcements({KEY: (AT, 70000)}, {HOST << 32 | 7: (KEY, AT)})
    ]  # fmt: skip
    heard = table()
    updates = [heard.apply(told(number, **message)) for number, message in enumerate(messages, 1)]
    assert updates == [([(KEY, (AT, 70000))], []), ([], [(KEY, HOST << 32 | 7, AT)])]
    gone = list(announcements({KEY: None}, {HOST << 32 | 7: (KEY, None)}))
    assert heard.apply(told(3, **gone[0])) == ([(KEY, None)], [])
    assert heard.apply(told(4, **gone[1])) == ([], [(KEY, HOST << 32 | 7, None)])
    assert not heard.sinks
    assert not heard.sources


def test_long_announcements_are_split_below_the_longest_line() -> None:
    listens = {Key(4294967295, number, "\x01" * 255): (AT, 1 << 30) for number in range(1200)}
    lines = [encode(message) for message in announcements(listens, {})]
    assert len(lines) == 3
    assert max(map(len, lines)) < 1 << 20


def test_a_snapshot_ends_what_it_does_not_name() -> None:
    heard = table()
    other = Key(1, 3, "")
    heard.apply(told(1, sinks=[SINK, [1, 3, "", "10.0.0.2", 5001, 1]], sources=[SOURCE]))
    heard.apply(told(2, begin=True))
    assert heard.apply(told(3, sinks=[SINK])) == ([], []), "known already"
    assert not heard.complete
    sinks, sources = heard.apply(told(4, end=True))
    assert sinks == [(other, None)]
    assert sources == [(KEY, HOST << 32 | 7, None)]
    assert heard.complete
    assert list(heard.sinks) == [KEY]


@pytest.mark.parametrize(
    "message",
    [
        {"n": 2},
        {"n": "1"},
        {"n": True},
        {},
        told(1, sinks=7),
        told(1, sinks=[[1, 2]]),
        told(1, sinks=[{}]),
        told(1, sinks=[[1, 2, "topic", "10.0.0.9", 5000, 1]]),
        told(1, sinks=[[1, 2, "topic", "10.0.0.2", 0, 1]]),
        told(1, sinks=[[1, 2, "topic", "10.0.0.2", 65536, 1]]),
        told(1, sinks=[[1, 2, "topic", "10.0.0.2", 5000, -1]]),
        told(1, sinks=[[1, 2, "topic", "10.0.0.2", 5000]]),
        told(1, sinks=[[1 << 32, 2, "topic"]]),
        told(1, sinks=[[1, 1 << 64, "topic"]]),
        told(1, sinks=[[1.0, 2, "topic"]]),
        told(1, sinks=[[1, 2, None]]),
        told(1, sinks=[[1, 2, "x" * 256]]),
        told(1, sinks=[[1, 2, "a\0b"]]),
        told(1, sources=[[1, 2, "topic", 7, "10.0.0.2", 5000]]),
        told(1, sources=[[1, 2, "topic", HOST << 32 | 7, "10.0.0.3", 5000]]),
        told(1, sources=[[1, 2, "topic", "x"]]),
    ],
)
def test_what_no_peer_may_say_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        table().apply(message)


def test_a_source_may_not_move_to_another_channel() -> None:
    heard = table()
    heard.apply(told(1, sources=[SOURCE]))
    with pytest.raises(PeerError, match="moved"):
        heard.apply(told(2, sources=[[1, 3, "topic", *SOURCE[3:]]]))


@pytest.mark.parametrize(
    "second",
    [[1, 3, "topic", *SOURCE[3:]], [1, 3, "topic", SOURCE[3]], [1, 2, "topic", 7]],
)
def test_of_an_announcement_that_is_refused_nothing_is_taken_in(second: list[object]) -> None:
    heard = table()
    heard.apply(told(1, sinks=[SINK], sources=[SOURCE]))
    with pytest.raises(PeerError):
        heard.apply(told(2, sinks=[SINK[:3], [1, 4, "", *SINK[3:]]], sources=[SOURCE[:4], second]))
    assert list(heard.sinks) == [KEY], "so that it is withdrawn with the peer"
    assert list(heard.sources) == [SOURCE[3]]


def test_a_peer_cannot_make_us_remember_without_end() -> None:
    heard = table()
    heard.sinks = {Key(1, number, ""): (AT, 1) for number in range(MAX_ENTRIES)}
    with pytest.raises(PeerError, match=f"more than {MAX_ENTRIES}"):
        heard.apply(told(1, sinks=[SINK]))
    heard = table()
    heard.sources = {HOST << 32 | number: (KEY, AT) for number in range(100, MAX_ENTRIES + 100)}
    with pytest.raises(PeerError, match=f"more than {MAX_ENTRIES}"):
        heard.apply(told(1, sources=[SOURCE]))


@pytest.mark.parametrize("line", [b"", b"GET / HTTP/1.1", b"[]", b"1", b"{" * 5000, b"\xff\xfe"])
def test_lines_that_are_no_messages_are_refused(line: bytes) -> None:
    with pytest.raises(PeerError):
        decode(line)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"hello": {"version": 2, "host": 1, "port": 1}}, "version 2 of the peer protocol, accepted 1"),
        ({"hello": {"version": 1, "host": -1, "port": 1}}, "without host and port"),
        ({"hello": {"version": 1, "host": 1}}, "without host and port"),
        ({"hello": 1}, "no greeting"),
        ({"n": 1}, "no greeting"),
        ({"error": "go away"}, "it refuses: go away"),
    ],
)
def test_greetings_are_checked(message: dict[str, object], text: str) -> None:
    with pytest.raises(PeerError, match=text):
        parse_hello(message)


def test_a_greeting_is_understood() -> None:
    assert parse_hello(Hello(5, 6).message()) == Hello(5, 6)


def test_noise_on_a_table_raises_its_error_only() -> None:
    noise = random.Random(2)
    values: list[object] = [0, 1, -1, 1 << 63, 1 << 70, 1.5, "", "topic", None, True, [], {}, AT.ip, HOST << 32 | 7]
    for _ in range(3000):
        entry = [noise.choice(values) for _ in range(noise.randrange(8))]
        heard = table()
        try:
            heard.apply(told(1, **{noise.choice(["sinks", "sources"]): [entry]}))
        except PeerError:
            continue
        assert len(heard.sinks) + len(heard.sources) <= 1
