# SPDX-License-Identifier: Apache-2.0
"""What selened-dp does at the word of its controller: sessions, their memory, edges; and how it starts and ends."""

import fcntl
import mmap
import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from tests.selened.dp.conftest import (
    D_EDGE_GONE,
    D_EDGE_SINK,
    D_EDGE_SOURCE,
    E_READY,
    E_SESSION_GONE,
    ERROR,
    MAGIC,
    O_EDGE,
    O_EDGE_END,
    O_HELLO,
    O_LISTEN,
    O_SESSION,
    O_SESSION_END,
    O_STATS,
    O_STOP,
    OK,
    PATIENCE_S,
    SLEEPING,
    VERSION,
    Start,
    receive,
)

F_GET_SEALS = 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_FUTURE_WRITE = 1, 2, 4, 16
FIXED = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW


def test_greeting_says_who_it_is(start: Start) -> None:
    dp = start()
    host, pid, sessions, flags = struct.unpack_from("IIII", dp.greet().body)
    assert host != 0
    assert (pid, sessions, flags) == (dp.process.pid, 0, 2)  # it can resume; it has no UDP socket
    dp.listen()
    dp.client(1)
    assert struct.unpack_from("IIII", dp.greet().body) == (host, pid, 1, 3)  # it has its UDP socket now


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"x",
        b"x" * 65536,
        struct.pack("IHHII", MAGIC ^ 1, VERSION, O_HELLO, 16, 1),
        struct.pack("IHHII", MAGIC, VERSION + 1, O_HELLO, 16, 1),
        struct.pack("IHHII", MAGIC, VERSION, O_HELLO, 17, 1),
        struct.pack("IHHII", MAGIC, VERSION, O_SESSION, 16, 1),
        struct.pack("IHHII", MAGIC, VERSION, O_LISTEN, 16, 1),
        struct.pack("IHHII", MAGIC, VERSION, 9999, 16, 1),
    ],
    ids=["end", "byte", "long", "magic", "version", "length", "short-order", "no-descriptor", "type"],
)
def test_rubbish_from_the_controller_ends_the_connection_only(start: Start, packet: bytes) -> None:
    dp = start()
    dp.client(1)
    with dp.control as old:
        if packet:
            old.send(packet)
            answer = receive(old)
            assert answer is not None
            assert answer.type == ERROR
            assert answer.text
            assert receive(old) is None
    dp.control = dp.connect()
    assert struct.unpack_from("III", dp.greet().body)[2] == 1


def test_an_order_before_the_greeting_is_refused(start: Start) -> None:
    dp = start()
    dp.control.close()
    dp.control = dp.connect()
    assert dp.order(O_STATS).type == ERROR


def test_one_controller_at_a_time(start: Start) -> None:
    dp = start()
    with dp.connect() as second:
        refusal = receive(second)
        assert refusal is not None
        assert refusal.error == 16  # EBUSY
    assert dp.greet().type == E_READY


def test_a_session_gets_sealed_memory(start: Start) -> None:
    client = start().client(0x1234)
    for fd, seals in ((client.tx_fd, FIXED), (client.page_fd, FIXED), (client.rx_fd, FIXED | SEAL_FUTURE_WRITE)):
        assert fcntl.fcntl(fd, F_GET_SEALS) & (FIXED | SEAL_FUTURE_WRITE) == seals
        with pytest.raises(OSError, match=r"not permitted|Invalid"):
            os.ftruncate(fd, 0)
    assert struct.unpack_from("IIQ", client.page) == (0x31475053, VERSION, 0x1234)
    assert struct.unpack_from("I", client.page, SLEEPING) == (1,)
    with pytest.raises(PermissionError):
        mmap.mmap(client.rx_fd, 0)
    again = os.open(f"/proc/self/fd/{client.rx_fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, 0)
    os.close(again)
    page = client.answer.fds[0]
    assert fcntl.fcntl(page, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with mmap.mmap(page, 0, prot=mmap.PROT_READ) as memory:
        client.page[4096 * 37] = 7  # a counter
        assert memory[4096 * 37] == 7


def test_sessions_of_a_user_share_the_receive_pool(start: Start) -> None:
    dp = start()
    inodes = [os.fstat(dp.client(i, uid).rx_fd).st_ino for i, uid in ((1, 7), (2, 7), (3, 8))]
    assert inodes[0] == inodes[1] != inodes[2]


def test_a_session_id_is_used_once(start: Start) -> None:
    dp = start()
    dp.client(5)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for session in (5, 0):
            assert dp.order(O_SESSION, struct.pack("QQII", session, 0, 0, 0), [theirs.fileno()]).error == 17  # EEXIST


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_descriptors_of_an_empty_packet_are_closed(start: Start) -> None:
    dp = start()
    before = _open_files(dp.process.pid)
    with dp.control as old, open(os.devnull, "rb") as file:
        socket.send_fds(old, [b""], [file.fileno()] * 4)
        assert receive(old) is None
    dp.control = dp.connect()
    dp.greet()
    assert _open_files(dp.process.pid) == before


def test_the_end_of_a_client_leaves_nothing(start: Start) -> None:
    dp = start()
    dp.stats()
    before = _open_files(dp.process.pid)
    for round_ in range(3):
        for i in range(1, 5):
            dp.client(i, uid=i % 2)
        dp.edge(round_, dp.clients[0], dp.clients[2])
        for client in dp.clients:
            client.close()
        assert {dp.gone()[:2] for _ in dp.clients} == {(i, 0) for i in range(1, 5)}
        dp.clients.clear()
    assert list(dp.stats()) == [0]
    assert _open_files(dp.process.pid) == before


def test_a_session_can_be_ended_by_order(start: Start) -> None:
    dp = start()
    client = dp.client(9)
    assert dp.order(O_SESSION_END, struct.pack("QQII", 9, 0, 0, 0)).type == OK
    assert receive(client.socket) is None
    assert list(dp.stats()) == [0]
    assert dp.order(O_SESSION_END, struct.pack("QQII", 9, 0, 0, 0)).type == OK


def test_an_edge_is_memory_of_both(start: Start) -> None:
    dp = start()
    source, sink = dp.client(1), dp.client(2)
    assert dp.edge(77, source, sink, ends=(10, 20), depth=2000).type == OK
    to_source, to_sink = source.expect(D_EDGE_SOURCE), sink.expect(D_EDGE_SINK)
    assert to_source.body == to_sink.body
    assert struct.unpack("QQQQII", to_source.body) == (77, 10, 20, 1, 2048, 256)
    ours, theirs = mmap.mmap(to_source.fds[0], 0), mmap.mmap(to_sink.fds[0], 0)
    assert struct.unpack_from("II", ours, 256) == (0x31474E49, 4096)
    assert struct.unpack_from("II", ours, 256 + 192 + 4096 * 8) == (0x31474E49, 2048)
    assert len(ours) == 256 + 192 * 2 + (4096 + 2048) * 8
    ours[300] = 9
    assert theirs[300] == 9
    assert fcntl.fcntl(to_sink.fds[0], F_GET_SEALS) & FIXED == FIXED
    assert os.fstat(to_sink.fds[1]).st_ino == os.fstat(source.tx_fd).st_ino
    assert fcntl.fcntl(to_sink.fds[1], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.eventfd_write(to_source.fds[1], 1)


def test_edges_join_sessions_of_one_user(start: Start) -> None:
    dp = start()
    one, other = dp.client(1, uid=1), dp.client(2, uid=2)
    refusal = dp.edge(1, one, other)
    assert refusal.error == 13  # EACCES
    assert "user 1" in refusal.text
    one.session = 99
    assert dp.edge(1, one, other).error == 2  # ENOENT
    one.session = 1
    assert dp.edge(1, one, one).type == OK


@pytest.mark.parametrize("how", ["order", "death"])
def test_the_end_of_an_edge_is_told(start: Start, how: str) -> None:
    dp = start()
    source, sink = dp.client(1), dp.client(2)
    dp.edge(77, source, sink)
    source.expect(D_EDGE_SOURCE)
    if how == "order":
        assert dp.order(O_EDGE_END, struct.pack("QQII", 0, 77, 0, 0)).type == OK
        sink.expect(D_EDGE_SINK)
        assert sink.expect(D_EDGE_GONE).body == struct.pack("Q", 77)
    else:
        sink.socket.close()
    assert source.expect(D_EDGE_GONE).body == struct.pack("Q", 77)


@pytest.mark.parametrize("dead", [0, 1], ids=["source", "sink"])
def test_an_edge_to_a_client_that_has_just_died_is_refused(start: Start, dead: int) -> None:
    """The order is read before the death is seen: no fault of the controller's, who stays."""
    dp = start()
    clients = dp.client(1), dp.client(2)
    os.kill(dp.process.pid, signal.SIGSTOP)
    os.waitpid(dp.process.pid, os.WUNTRACED)
    fd = os.eventfd(0)
    dp.send(O_EDGE, struct.pack("QQQQQII", 77, 10, 20, 1, 2, 0, 0), [fd])
    os.close(fd)
    clients[dead].socket.close()
    os.kill(dp.process.pid, signal.SIGCONT)
    answers = [receive(dp.control), receive(dp.control)]
    assert sorted(a.type for a in answers if a) == [ERROR, E_SESSION_GONE]
    assert [a.error for a in answers if a and a.type == ERROR] == [3]  # ESRCH
    assert list(dp.stats()) == [0, 2 - dead]


def test_a_controller_that_restarts_takes_edges_over(start: Start) -> None:
    dp = start()
    source, sink = dp.client(1), dp.client(2)
    dp.edge(77, source, sink, ends=(10, 20))
    source.expect(D_EDGE_SOURCE)
    dp.control.close()
    dp.control = dp.connect()
    assert struct.unpack_from("III", dp.greet().body)[2] == 2
    assert dp.edge(1001, source, sink, ends=(10, 20)).type == OK
    dp.order(O_EDGE_END, struct.pack("QQII", 0, 1001, 0, 0))
    assert source.expect(D_EDGE_GONE).body == struct.pack("Q", 77)


def test_a_client_that_does_not_read_is_cut_off(start: Start) -> None:
    dp = start()
    source, sink = dp.client(1), dp.client(2)
    for number in range(20000):
        if dp.edge(number, sink, sink, ends=(number, number)).type != OK:
            break
    session, error, text = dp.gone()
    assert (session, error) == (2, 103)  # ECONNABORTED
    assert "does not read" in text
    assert source.session in dp.stats()


def test_only_a_udp_socket_is_listened_to(start: Start) -> None:
    dp = start()
    with socket.socket() as tcp:
        assert dp.order(O_LISTEN, fds=[tcp.fileno()]).error == 22  # EINVAL
    dp.listen()
    dp.listen()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_it_ends_cleanly(start: Start, number: signal.Signals | None) -> None:
    dp = start()
    dp.client(1)
    if number is None:
        assert dp.order(O_STOP).type == OK
    else:
        dp.process.send_signal(number)
    assert dp.process.wait(PATIENCE_S) == 0
    assert not dp.path.exists()


def test_it_ends_when_nobody_needs_it(start: Start) -> None:
    dp = start("--idle-exit-s", "1")
    client = dp.client(1)
    dp.control.close()
    client.ring()
    client.close()
    dp.clients.clear()
    assert dp.process.wait(PATIENCE_S) == 0


def test_one_process_per_socket(start: Start, tmp_path: Path) -> None:
    first = start(path=tmp_path / "x.dp")
    second = start(path=first.path)
    assert not second.ready
    assert second.process.wait(PATIENCE_S) == 1
    first.process.kill()
    first.process.wait(PATIENCE_S)
    first.ready = ""
    assert first.path.exists()
    assert start(path=first.path).ready
    first.process.returncode = 0


def test_the_socket_is_private(start: Start) -> None:
    assert start().path.stat().st_mode & 0o777 == 0o600
