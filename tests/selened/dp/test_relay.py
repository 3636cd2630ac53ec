# SPDX-License-Identifier: Apache-2.0
"""The way of a datagram through selened-dp: between two hosts (two processes over loopback) and between users."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.selened.dp.conftest import (
    ANSWER,
    BUFFERS,
    CAPACITY,
    CREDIT,
    DATA,
    HEADER,
    OK,
    PATIENCE_S,
    PROBE,
    RELAYED,
    RELIABLE,
    TO_SOURCE,
    Client,
    Datapath,
    Start,
    decode,
    encode,
)
from tests.waiting import wait_until

SOURCE = 0xAA00000001


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """A remote host: a bare UDP socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE_S)
        yield sock


def _accepting(start: Start, wire: socket.socket, *users: int) -> tuple[Datapath, list[Client]]:
    dp = start()
    wire.connect(dp.listen().getsockname())
    clients = [dp.client(i + 1, uid) for i, uid in enumerate(users)]
    assert dp.accept(SOURCE, wire, clients).type == OK
    return dp, clients


def _routing(start: Start, wire: socket.socket) -> tuple[Datapath, Client]:
    dp = start()
    wire.connect(dp.listen().getsockname())
    client = dp.client(1)
    assert dp.route(SOURCE, client, [wire]).type == OK
    return dp, client


def test_from_client_to_client_over_two_processes(start: Start) -> None:
    here, there = start(), start()
    here.listen()
    there.listen()
    assert here.udp is not None
    assert there.udp is not None
    source, sink = here.client(1), there.client(2)
    here.route(SOURCE, source, [there.udp])
    there.accept(SOURCE, here.udp, [sink])
    for size in (1, 64, 1400, 60000):
        payload = bytes(i % 251 for i in range(size))
        assert source.send(encode(DATA, SOURCE, payload)) == 0
        data = sink.take()
        assert decode(data).flags == RELAYED
        assert data[80 : 80 + size] == payload
    counters = there.stats()[2]
    assert (counters["rx_datagrams"], counters["dropped_quota"]) == (4, 0)
    assert here.stats()[1]["tx_datagrams"] == 4


def test_identity_comes_from_the_route(start: Start, wire: socket.socket) -> None:
    _, client = _routing(start, wire)
    assert client.send(encode(DATA, SOURCE, b"hello")) == 0
    got = decode(wire.recv(65536))
    assert (got.stream, got.channel, got.epoch, got.source, got.flags) == (9, 4711, 3, SOURCE, RELAYED)


def test_what_was_pushed_leaves_before_the_route_changes(start: Start, wire: socket.socket) -> None:
    dp, client = _routing(start, wire)
    for i in range(100):
        client.put(encode(DATA, SOURCE, bytes([i])), buffer=i)
    dp.route(SOURCE, client, [])
    assert [wire.recv(65536)[80] for _ in range(100)] == list(range(100))
    assert client.send(encode(DATA, SOURCE, b"late")) != 0 or [client.wait(client.done)[1] >> 32 for _ in range(100)]


def test_a_send_error_is_the_outcome(start: Start, wire: socket.socket) -> None:
    dp = start()
    client = dp.client(1)
    dp.route(SOURCE, client, [wire])
    assert client.send(encode(DATA, SOURCE, b"x")) == 100  # ENETDOWN: no socket yet
    dp.listen()
    assert client.send(encode(DATA, SOURCE, bytes(65000))) == 0
    assert client.send(encode(DATA, SOURCE, bytes(65424))) == 0
    assert client.send(encode(DATA, SOURCE, bytes(65432))) == 90  # EMSGSIZE: no UDP datagram is so long
    assert dp.stats()[1]["tx_errors"] == 1


def test_several_destinations(start: Start, wire: socket.socket) -> None:
    dp = start()
    dp.listen()
    client = dp.client(1)
    sockets = []
    for _ in range(3):
        sockets.append(sock := socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE_S)
    dp.route(SOURCE, client, sockets)
    client.send(encode(DATA, SOURCE, b"all"))
    for sock in sockets:
        with sock:
            assert sock.recv(65536)[80:83] == b"all"


def test_sessions_of_a_user_share_one_copy(start: Start, wire: socket.socket) -> None:
    _, (one, two, other) = _accepting(start, wire, 7, 7, 8)
    wire.send(encode(DATA, SOURCE, b"shared"))
    first, second, third = one.wait(one.rx), two.wait(two.rx), other.wait(other.rx)
    assert first == second
    for client, (slice_, length) in ((one, first), (other, third)):
        assert client.look(slice_, length)[80:86] == b"shared"
    offset = (first[0] >> 31 & 0x1FFF) * 8
    assert (offset + 80) % 64 == 0  # the payload is cache-line aligned


def test_a_source_of_another_user_of_this_host(start: Start) -> None:
    dp = start()
    source, sink = dp.client(1, uid=1), dp.client(2, uid=2)
    dp.route(SOURCE, source, [], [sink])
    dp.accept(SOURCE, None, [sink])
    assert source.send(encode(DATA, SOURCE, b"copied", credit=1000)) == 0
    assert sink.take()[80:86] == b"copied"
    assert sink.send(encode(CREDIT, SOURCE, credit=1000, window=4000), TO_SOURCE) == 0
    got = decode(source.take())
    assert (got.type, got.credit, got.window) == (CREDIT, 1000, 4000)


def test_only_the_announced_sender_is_heard(start: Start, wire: socket.socket) -> None:
    dp, (client,) = _accepting(start, wire, 1)
    assert dp.udp is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        forger.bind(("127.0.0.1", 0))
        forger.connect(dp.udp.getsockname())
        forger.send(encode(DATA, SOURCE, b"forged"))
        forger.send(b"rubbish")
        forger.send(bytes(2000))
        forger.send(encode(DATA, SOURCE, b"x")[:2] + b"\x09" + encode(DATA, SOURCE, b"x")[3:])
        forger.send(encode(DATA, SOURCE, b"x")[:-9])
    wire.send(encode(DATA, SOURCE + 1, b"unknown"))
    wire.send(encode(CREDIT, SOURCE + 1, credit=1))
    wire.send(encode(DATA, SOURCE, b"true"))
    assert client.take()[80:84] == b"true"
    totals = dp.stats()[0]
    assert (totals["rx_unknown"], totals["rx_rubbish"], totals["rx_version"]) == (3, 3, 1)


def test_coalesced_receptions_are_taken_apart(start: Start, wire: socket.socket) -> None:
    _, (client,) = _accepting(start, wire, 1)
    datagram = encode(DATA, SOURCE, bytes(200))
    count, rest = 60, 3
    control = [(socket.IPPROTO_UDP, 103, struct.pack("H", len(datagram)))]  # UDP_SEGMENT
    parts = [datagram[:80] + bytes([i]) + datagram[81:] for i in range(count)]
    try:
        wire.sendmsg([b"".join(parts)], control)
    except OSError:
        pytest.skip("the kernel has no UDP GSO")
    assert [client.take()[80] for _ in range(count)] == list(range(count))
    wire.send(encode(DATA, SOURCE, bytes([rest])))
    assert client.take()[80] == rest


def _credit(wire: socket.socket) -> int:
    got = decode(wire.recv(65536))
    assert got.type == CREDIT
    assert not got.flags & ANSWER
    return got.credit


@pytest.mark.parametrize(("flags", "expected"), [(RELIABLE, [44, 1000, 5000]), (0, [9000, 9000, 9000])])
def test_credit_of_several_sessions_is_merged(
    start: Start, wire: socket.socket, flags: int, expected: list[int]
) -> None:
    _, (slow, fast) = _accepting(start, wire, 1, 2)
    for credit in (900, 9000):
        wire.send(encode(DATA, SOURCE, b"x", flags=flags, credit=credit))
        for client in (slow, fast):
            client.take()
    for client, value in ((fast, 9000), (slow, 1000), (slow, 5000)):
        assert client.send(encode(CREDIT, SOURCE, flags=ANSWER, credit=value, window=8000), TO_SOURCE) == 0
    assert [_credit(wire) for _ in range(3)] == expected


def test_small_steps_of_credit_are_kept_back(start: Start, wire: socket.socket) -> None:
    _, (client,) = _accepting(start, wire, 1)
    wire.send(encode(DATA, SOURCE, b"x", credit=900))
    wire.send(encode(PROBE, SOURCE, credit=90000))
    client.take()
    assert decode(client.take()).type == PROBE
    for value in (1000, 1500, 2100, 3100, 99999):
        client.send(encode(CREDIT, SOURCE, credit=value, window=4000), TO_SOURCE)
    # more than it has sent cannot have been taken in
    assert [_credit(wire) for _ in range(4)] == [1000, 2100, 3100, 90000]


def test_credit_for_a_relayed_source(start: Start, wire: socket.socket) -> None:
    dp, client = _routing(start, wire)
    for credit in (900, 5000):
        client.send(encode(DATA, SOURCE, b"x", flags=RELIABLE, credit=credit))
        wire.recv(65536)
    wire.send(encode(CREDIT, SOURCE, credit=4000, window=9999))
    got = decode(client.take())
    assert (got.type, got.source, got.credit, got.window) == (CREDIT, SOURCE, 4000, 9999)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        second.bind(("127.0.0.1", 0))
        second.connect(wire.getpeername())
        dp.route(SOURCE, client, [wire, second])
        wire.send(encode(CREDIT, SOURCE, credit=5000, window=9999))
        assert decode(client.take()).credit == 5000
        client.send(encode(DATA, SOURCE, b"y", flags=RELIABLE, credit=6000))
        wire.send(encode(CREDIT, SOURCE, credit=6000, window=9999))
        assert decode(client.take()).credit == 5000  # the second one has not said so yet
        second.send(encode(CREDIT, SOURCE, credit=5500, window=8888))
        got = decode(client.take())
        assert (got.credit, got.window) == (5500, 8888)


def test_who_keeps_too_much_loses_and_others_do_not(start: Start, wire: socket.socket) -> None:
    dp, (greedy, good) = _accepting(start, wire, 7, 7)
    free = BUFFERS * 3 // 4  # while there are more than a quarter, nobody is limited
    for i in range(free + 16):
        wire.send(encode(DATA, SOURCE, bytes([i]) * 60000))
        assert good.take()[80] == i
    counters = dp.stats()
    got = counters[1]["rx_datagrams"]
    assert free - 2 <= got <= free
    assert counters[1]["dropped_quota"] == free + 16 - got
    assert counters[2]["dropped_quota"] == 0
    held = [greedy.wait(greedy.rx) for _ in range(got)]
    assert [greedy.look(*entry)[80] for entry in held] == list(range(got))
    greedy.release.push(*(slice_ for slice_, _ in held))
    wire.send(encode(DATA, SOURCE, b"again"))
    assert greedy.take()[80:85] == b"again"
    good.take()


def test_what_a_client_holds_fits_its_release_ring(start: Start) -> None:
    dp = start()
    source, keeper = dp.client(1, uid=1), dp.client(2, uid=2)
    dp.route(SOURCE, source, [], [keeper])
    held = []
    for _ in range(CAPACITY + 10):
        assert source.send(encode(DATA, SOURCE, b"x")) == 0
        while (slice_ := keeper.rx.pop()) is not None:
            keeper.rx.pop()
            held.append(slice_)
    assert len(held) == CAPACITY
    assert dp.stats()[2]["dropped_quota"] == 10
    keeper.release.push(*held)
    source.send(encode(DATA, SOURCE, b"again"))
    assert keeper.take()[80:85] == b"again"


def test_a_dead_client_gives_back_what_it_held(start: Start, wire: socket.socket) -> None:
    dp, (keeper, good) = _accepting(start, wire, 7, 7)
    for round_ in range(6):
        for i in range(60):
            wire.send(encode(DATA, SOURCE, bytes([i]) * 60000))
            assert good.take()[80] == i
        assert dp.stats()[keeper.session]["dropped_quota"] == 0
        keeper.close()
        dp.clients.remove(keeper)
        assert dp.gone()[0] == keeper.session
        keeper = dp.client(100 + round_, uid=7)
        dp.accept(SOURCE, wire, [keeper, good])


def test_a_sleeping_client_hears_of_outcomes(start: Start, wire: socket.socket) -> None:
    _, client = _routing(start, wire)
    for _ in range(20):
        assert client.send(encode(DATA, SOURCE, b"x")) == 0


def test_a_done_ring_left_full_loses_nothing(start: Start, wire: socket.socket) -> None:
    dp, client = _routing(start, wire)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = 0
    while client.tx.tail - client.tx.head <= 4096 - 2:  # both rings are full in the end
        client.put(encode(DATA, SOURCE, b"x"), buffer=sent % 256)
        sent += 1
    for _ in range(sent):
        assert client.wait(client.done)[1] >> 32 == 0
    assert dp.stats()[1]["tx_datagrams"] == sent


def test_it_sleeps_when_idle(start: Start, wire: socket.socket) -> None:
    dp, (client,) = _accepting(start, wire, 1)
    wire.send(encode(DATA, SOURCE, b"x"))
    client.take()

    def asleep() -> bool:
        tasks = Path(f"/proc/{dp.process.pid}/task").iterdir()
        return all(task.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] == "S" for task in tasks)

    # a spinner is runnable at every look; all threads asleep, look after look, is a process that waits in the kernel
    wait_until(lambda: all(asleep() for _ in range(50)), "all threads to sleep")


def test_header_is_what_the_driver_thinks() -> None:
    assert HEADER.size == 72
