# SPDX-License-Identifier: Apache-2.0
"""Clients that break the rules: each is answered or cut off with a reason, and nobody else notices."""

import contextlib
import itertools
import random
import socket
from collections.abc import Callable

import pytest

from tests.selened.dp.conftest import (
    CAPACITY,
    CREDIT,
    DATA,
    ERROR,
    HEADER,
    TO_SOURCE,
    TX,
    Client,
    Datapath,
    Start,
    encode,
    receive,
)

SOURCE, OTHER = 0xAA00000001, 0xAA00000002
GONE = 0xAA00000009


def _witness(start: Start) -> tuple[Datapath, Client, Client]:
    """A datapath, a client that is to misbehave, and an honest one that hears the former's user."""
    dp = start()
    dp.listen()
    bad, good = dp.client(1, uid=1), dp.client(2, uid=2)
    dp.route(SOURCE, bad, [], [good])
    dp.route(OTHER, good, [], [good])
    return dp, bad, good


def _works(good: Client) -> None:
    assert good.send(encode(DATA, OTHER, b"still here")) == 0
    while good.take()[80:90] != b"still here":
        pass


def _slice(buffer: int, offset: int) -> int:
    return buffer << 44 | offset // 8 << 31


@pytest.mark.parametrize(
    ("slice_", "word", "outcome"),
    [
        (_slice(256, 112), 88, 14),
        (_slice(2**20 - 1, 112), 88, 14),
        (_slice(255, 65528), 2**32 - 1, 14),
        (_slice(255, 65528), 4105, 14),
        (_slice(0, 112), 65508, 90),
        (_slice(0, 112), 71, 90),
        (_slice(0, 112), 0, 90),
        (_slice(0, 4096), 88, 71),
        (_slice(0, 112), 87, 71),
        (_slice(0, 112), 88 | 9 << 32, 22),
        (_slice(0, 112), 88 | TO_SOURCE << 32, 71),
    ],
)
def test_a_bad_entry_is_answered(start: Start, slice_: int, word: int, outcome: int) -> None:
    dp, bad, good = _witness(start)
    bad.send(encode(DATA, SOURCE, b"fine"))
    bad.tx.push(slice_, word)
    bad.ring()
    done, answer = bad.wait(bad.done)
    assert (done, answer & 0xFFFFFFFF, answer >> 32) == (slice_, word & 0xFFFFFFFF, outcome)
    understood = word >> 32 == TO_SOURCE  # but DATA does not go there
    assert dp.stats()[1]["violations"] == (0 if understood else 1)
    good.take()
    _works(good)


def test_sources_and_accepts_of_others_are_refused(start: Start) -> None:
    dp, bad, good = _witness(start)
    assert bad.send(encode(DATA, OTHER, b"forged")) == 2  # ENOENT
    assert bad.send(encode(DATA, GONE, b"forged")) == 2
    assert bad.send(encode(CREDIT, SOURCE)) == 71  # EPROTO: to a route
    assert bad.send(encode(CREDIT, OTHER, credit=1), TO_SOURCE) == 2
    assert bad.send(encode(CREDIT, GONE, credit=1), TO_SOURCE) == 2
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as remote:
        remote.bind(("127.0.0.1", 0))
        dp.accept(GONE, remote, [good])
        assert bad.send(encode(CREDIT, GONE, credit=1), TO_SOURCE) == 2
    assert dp.route(OTHER, bad, []).error == 17  # EEXIST
    _works(good)


def _tx_index(client: Client) -> None:
    client.tx.tail = client.tx.head + CAPACITY + 2


def _tx_odd(client: Client) -> None:
    client.tx.push(1)


def _done_index(client: Client) -> None:
    client.done.head = client.done.tail + 1
    client.put(encode(DATA, SOURCE))


def _release_index(client: Client) -> None:
    client.release.tail = 2**64 - 1


def _release_nothing(client: Client) -> None:
    client.release.push(_slice(0, 112) | 1)


def _release_nonsense(client: Client) -> None:
    client.release.push(2**64 - 1)


@pytest.mark.parametrize(
    "do",
    [
        _tx_index,
        _tx_odd,
        _done_index,
        _release_index,
        _release_nothing,
        _release_nonsense,
    ],
)
def test_who_breaks_the_protocol_is_cut_off(start: Start, do: Callable[[Client], None]) -> None:
    dp, bad, good = _witness(start)
    do(bad)
    bad.ring()
    session, error, text = dp.gone()
    assert (session, error) == (1, 71)
    packet = receive(bad.socket)
    assert packet is not None
    assert (packet.type, packet.text) == (ERROR, text)
    assert receive(bad.socket) is None
    assert list(dp.stats()) == [0, 2]
    assert dp.stats()[0]["violations"] == 1
    _works(good)


def test_who_corrupts_the_receive_ring_is_cut_off(start: Start) -> None:
    dp, bad, good = _witness(start)
    bad.rx.head = 2**63
    dp.route(OTHER, good, [], [bad, good])
    for _ in range(CAPACITY // 2 + 1):  # the index is looked at when the ring seems full
        assert good.send(encode(DATA, OTHER, b"x")) == 0
        good.take()
    assert dp.gone()[:2] == (1, 71)
    dp.route(OTHER, good, [], [good])
    _works(good)


def test_a_slice_is_given_back_once(start: Start) -> None:
    dp, bad, good = _witness(start)
    dp.route(OTHER, good, [], [bad, good])
    good.send(encode(DATA, OTHER, b"x"))
    slice_, _ = bad.wait(bad.rx)
    good.take()
    bad.release.push(slice_, slice_)
    bad.ring()
    assert dp.gone()[0] == 1
    _works(good)


def test_a_stale_slice_is_not_given_back(start: Start) -> None:
    dp, bad, good = _witness(start)
    dp.route(OTHER, good, [], [bad, good])
    good.send(encode(DATA, OTHER, b"x"))
    slice_, _ = bad.wait(bad.rx)
    bad.release.push(slice_ ^ 1)  # another generation
    bad.ring()
    assert dp.gone()[0] == 1


def test_a_flood_of_wake_ups_is_cut_off(start: Start) -> None:
    dp, bad, good = _witness(start)
    dp.control.setblocking(False)
    for count in itertools.count():
        bad.ring()
        if count % 1000 == 0:
            with contextlib.suppress(BlockingIOError):
                session, error, text = dp.gone()
                break
    dp.control.setblocking(True)
    assert (session, error) == (1, 103)
    assert "wake-ups" in text
    _works(good)


def test_too_many_malformed_entries_are_cut_off(start: Start) -> None:
    dp, bad, good = _witness(start)
    for _ in range(999):
        assert bad.send(b"\0" * HEADER.size) == 71
    bad.put(b"\0" * HEADER.size)
    assert dp.gone() == (1, 71, "1,000 malformed entries in the transmit ring")
    _works(good)


def test_nothing_is_taken_from_a_client(start: Start) -> None:
    """Neither packets nor descriptors: to close what somebody else has passed can block."""
    _, bad, good = _witness(start)
    with socket.socket(fileno=bad.bell_fd) as bell:
        for to in (bad.socket, bell):
            for data in (b"", b"hello", b"x" * 1000):
                with pytest.raises(BrokenPipeError):
                    socket.send_fds(to, [data], bad.fds)
        bell.detach()
    assert bad.send(encode(DATA, SOURCE, b"x")) == 0
    good.take()
    _works(good)


@pytest.mark.parametrize("seed", range(12))
def test_random_pages(start: Start, seed: int) -> None:
    """Invariant: whatever a client writes into its page and pool, the process goes on and serves the other."""
    rng = random.Random(seed)
    dp, bad, good = _witness(start)
    for round_ in range(30):
        if rng.random() < 0.7:
            head = bytearray(encode(DATA, rng.choice([SOURCE, OTHER, GONE]), rng.randbytes(rng.randrange(200))))
            for _ in range(rng.randrange(6)):
                head[rng.randrange(HEADER.size)] = rng.randrange(256)
            bad.pool[4096 + 524288 + 112 : 4096 + 524288 + 112 + len(head)] = bytes(head)
            word = rng.choice([len(head), rng.randrange(2**17), rng.getrandbits(64)])
            bad.tx.push(_slice(rng.choice([0, 0, rng.randrange(2**20)]), 112), word)
        elif rng.random() < 0.5:
            at = TX + rng.randrange(4 * 36864)
            bad.page[at : at + 64] = rng.randbytes(64)
        else:
            bad.release.push(rng.getrandbits(64))
        bad.ring()
        if round_ % 10 == 0:
            _works(good)
    _works(good)
    assert dp.process.poll() is None


@pytest.mark.parametrize("seed", range(4))
def test_random_orders(start: Start, seed: int) -> None:
    """Invariant: whatever comes on the order socket is answered or ends the connection, and the process goes on."""
    rng = random.Random(seed)
    dp, _, good = _witness(start)
    for _ in range(200):
        kind = rng.choice([96, 97, 99, 100, 101, 102, 103, 104, rng.randrange(65536)])
        size = rng.choice([0, 24, 56, 2604, 2604, 568, rng.randrange(4096)])
        body = bytearray(rng.randbytes(size) if rng.random() < 0.5 else bytes(size))
        fds = [good.wake_fd] * rng.choice([0, 0, 1, 1, 2, 8])
        try:
            dp.send(kind, bytes(body), fds)
            alive = receive(dp.control) is not None
        except OSError:
            alive = False
        if not alive or rng.random() < 0.1:
            dp.control.close()
            dp.control = dp.connect()
            dp.greet()
    assert dp.process.poll() is None
