# SPDX-License-Identifier: Apache-2.0
"""A controller and clients of selened-dp, written from proto.h, ring.h, pool.h and frame.h and nothing else.

`QOS_TEST_SELENED_DP` names another binary to test, such as one built with sanitizers.
"""

import mmap
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import pytest

MAGIC, VERSION = 0x314E4C53, 3
OK, ERROR = 35, 36
D_SESSION, D_EDGE_SOURCE, D_EDGE_SINK, D_EDGE_GONE = 64, 65, 66, 67
O_HELLO, O_LISTEN, O_SESSION, O_SESSION_END, O_EDGE, O_EDGE_END, O_ROUTE, O_ACCEPT, O_STATS, O_STOP = range(96, 106)
E_READY, E_SESSION_GONE, E_STATS = 128, 129, 130
DATA, CREDIT, PROBE = 1, 2, 3
RELIABLE, RELAYED, ANSWER = 1, 8, 0x8000
TO_ROUTE, TO_SOURCE = 0, 1
CAPACITY, RING_BYTES, STRIDE, BUFFERS = 4096, 36864, 69632, 256
OWNERS = BUFFERS * 256 * 8
TX, DONE, RX, RELEASE = (4096 + i * RING_BYTES for i in range(4))
WAITING, SLEEPING = 128, 64  # words of the page
PATIENCE_S = 20
FAULTS = 6 * 8  # struct selene_fault_counters
COUNTERS = [
    "session",
    *("tx_datagrams", "tx_bytes", "tx_errors", "rx_datagrams", "rx_bytes", "rx_rubbish", "rx_version", "rx_unknown"),
    *("rx_overflow", "dropped_quota", "wakeups", "wakeups_empty", "violations"),
]
HEADER = struct.Struct("<HBBHHHHIQQQQQIIII")


class Packet(NamedTuple):
    """One packet: `body` is what follows the header."""

    type: int
    request: int
    body: bytes
    fds: list[int]

    @property
    def error(self) -> int:
        """The errno of an ERROR, 0 of anything else."""
        return int(struct.unpack_from("i", self.body)[0]) if self.type == ERROR else 0

    @property
    def text(self) -> str:
        return self.body[8:].split(b"\0")[0].decode()


class Wire(NamedTuple):
    """A decoded wire header."""

    type: int
    flags: int
    records: int
    length: int
    stream: int
    channel: int
    source: int
    sequence: int
    epoch: int
    credit: int
    window: int


def decode(data: bytes) -> Wire:
    f = HEADER.unpack_from(data)
    return Wire(f[2], f[3], f[4], f[5], f[7], f[8], f[9], f[10], f[13], f[14], f[15])


def encode(kind: int, source: int, payload: bytes = b"", *, flags: int = 0, credit: int = 0, window: int = 0) -> bytes:
    """A datagram: DATA of one record, or a header alone."""
    record = struct.pack("<II", len(payload), 0) + payload + bytes(-len(payload) % 8) if kind == DATA else b""
    count = 1 if kind == DATA else 0
    head = (0x4553, 1, kind, flags, count, len(record), 0, 77, 88, source, 5, 0, 0, 66, credit, window, 0)
    return HEADER.pack(*head) + record


def address(to: socket.socket | tuple[str, int] | None) -> bytes:
    """struct selene_addr of an IPv4 socket; None: all zero."""
    if to is None:
        return bytes(24)
    ip, port = to.getsockname() if isinstance(to, socket.socket) else to
    return bytes(10) + b"\xff\xff" + socket.inet_aton(ip) + struct.pack("HHI", port, 0, 0)


def receive(sock: socket.socket) -> Packet | None:
    """The next packet, None at the end of the connection."""
    data, fds, _, _ = socket.recv_fds(sock, 65536, 8)
    if not data:
        return None
    _, _, kind, length, request = struct.unpack_from("IHHII", data)
    assert length == len(data)
    return Packet(kind, request, data[16:], fds)


class Ring:
    """One side of a struct qos_ring in a mapping.

    Words are items of a memoryview, which are written at once; struct.pack_into writes zeros first, and the other side
    would see them.
    """

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        assert struct.unpack_from("II", memory, at) == (0x31474E49, CAPACITY)
        self.words = memoryview(memory)[at : at + 192 + CAPACITY * 8].cast("Q")

    def _word(self, offset: int) -> int:
        return self.words[offset // 8]

    def _put(self, offset: int, value: int) -> None:
        self.words[offset // 8] = value

    @property
    def tail(self) -> int:
        return self._word(64)

    @tail.setter
    def tail(self, value: int) -> None:
        self._put(64, value)

    @property
    def head(self) -> int:
        return self._word(128)

    @head.setter
    def head(self, value: int) -> None:
        self._put(128, value)

    def push(self, *words: int) -> None:
        tail = self.tail
        for i, word in enumerate(words):
            self._put(192 + (tail + i) % CAPACITY * 8, word)
        self.tail = tail + len(words)

    def pop(self) -> int | None:
        head = self.head
        if head == self.tail:
            return None
        word = self._word(192 + head % CAPACITY * 8)
        self.head = head + 1
        return word


class Client:
    """A session, as libselene would hold it."""

    def __init__(self, dp: "Datapath", session: int, uid: int) -> None:
        self.session, self.uid = session, uid
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE_S)
        with theirs:
            self.answer = dp.order(O_SESSION, struct.pack("QQII", session, 0, uid, 0), [theirs.fileno()])
        assert self.answer.type == OK, self.answer.text
        packet = receive(self.socket)
        assert packet is not None
        assert packet.type == D_SESSION
        assert struct.unpack("QIIII", packet.body) == (session, BUFFERS, BUFFERS, CAPACITY, 1024)
        self.fds = packet.fds
        self.tx_fd, self.page_fd, self.rx_fd, self.wake_fd, self.bell_fd = packet.fds
        self.pool = mmap.mmap(self.tx_fd, 0)
        self.page = mmap.mmap(self.page_fd, 0)
        self.waiting = memoryview(self.page)[WAITING : WAITING + 4].cast("I")
        self.rx_pool = mmap.mmap(self.rx_fd, 0, prot=mmap.PROT_READ)
        self.tx, self.done = Ring(self.page, TX), Ring(self.page, DONE)
        self.rx, self.release = Ring(self.page, RX), Ring(self.page, RELEASE)

    def close(self) -> None:
        self.socket.close()
        for fd in (*self.fds, *self.answer.fds):
            os.close(fd)
        self.fds, self.answer = [], self.answer._replace(fds=[])

    def ring(self) -> None:
        os.eventfd_write(self.wake_fd, 1)

    def put(self, datagram: bytes, kind: int = TO_ROUTE, buffer: int = 0) -> int:
        """Write a datagram into a buffer, push it and ring. Its slice."""
        slice_ = buffer << 44 | (112 // 8) << 31
        at = 4096 + OWNERS + buffer * STRIDE + 112
        self.pool[at : at + len(datagram)] = datagram
        self.tx.push(slice_, len(datagram) | kind << 32)
        self.ring()
        return slice_

    def wait(self, ring: Ring) -> tuple[int, int]:
        """The next entry of DONE or RX, asleep on the doorbell until it is there."""
        poll = select.poll()
        poll.register(self.bell_fd, select.POLLIN)
        while True:
            self.waiting[0] = 2
            word = ring.pop()
            if word is not None:
                self.waiting[0] = 0
                second = ring.pop()
                assert second is not None
                return word, second
            assert poll.poll(PATIENCE_S * 1000), "nothing came"
            os.read(self.bell_fd, 1)

    def send(self, datagram: bytes, kind: int = TO_ROUTE) -> int:
        """Put, and wait until it is done. The outcome, a positive errno."""
        slice_ = self.put(datagram, kind)
        done, word = self.wait(self.done)
        assert (done, word & 0xFFFFFFFF) == (slice_, len(datagram))
        return word >> 32

    def look(self, slice_: int, length: int) -> bytes:
        at = OWNERS + (slice_ >> 44) * STRIDE + (slice_ >> 31 & 0x1FFF) * 8
        return self.rx_pool[at : at + length]

    def take(self) -> bytes:
        """The next datagram received, given back at once."""
        slice_, length = self.wait(self.rx)
        data = self.look(slice_, length)
        self.release.push(slice_)
        return data

    def expect(self, kind: int) -> Packet:
        packet = receive(self.socket)
        assert packet is not None
        assert packet.type == kind
        return packet


class Datapath:
    """A running selened-dp and the controller's connection to it."""

    def __init__(self, binary: Path, path: Path, *options: str) -> None:
        self.path = path
        ready, theirs = os.pipe()
        command = [str(binary), "--socket", str(path), "--ready-fd", str(theirs), *options]
        self.process = subprocess.Popen(command, pass_fds=[theirs], stderr=subprocess.PIPE, text=True)
        os.close(theirs)
        with os.fdopen(ready) as lines:
            self.ready = lines.read()
        self.number = 0
        self.host = 0
        self.udp: socket.socket | None = None
        self.clients: list[Client] = []
        if self.ready:
            self.control = self.connect()
            self.greet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        if self.ready:
            self.control.close()
        if self.udp is not None:
            self.udp.close()
        self.process.terminate()
        log = self.process.communicate(timeout=PATIENCE_S)[1]
        assert "Sanitizer" not in log, log
        assert "runtime error" not in log, log
        assert self.process.returncode in (0, 1, 2), log

    def connect(self) -> socket.socket:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(PATIENCE_S)
        control.connect(str(self.path))
        return control

    def send(self, kind: int, body: bytes = b"", fds: list[int] | None = None) -> None:
        self.number += 1
        head = struct.pack("IHHII", MAGIC, VERSION, kind, 16 + len(body), self.number)
        socket.send_fds(self.control, [head + body], fds or [])

    def order(self, kind: int, body: bytes = b"", fds: list[int] | None = None) -> Packet:
        """Order and answer. Pushed packets in between are dropped."""
        self.send(kind, body, fds)
        while True:
            packet = receive(self.control)
            assert packet is not None
            if packet.request == self.number:
                return packet

    def greet(self) -> Packet:
        ready = self.order(O_HELLO)
        assert ready.type == E_READY
        self.host = struct.unpack_from("I", ready.body)[0]
        return ready

    def listen(self) -> socket.socket:
        """Give it a UDP socket on the loopback interface."""
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        assert self.order(O_LISTEN, fds=[self.udp.fileno()]).type == OK
        return self.udp

    def client(self, session: int, uid: int = 1000) -> Client:
        client = Client(self, session, uid)
        self.clients.append(client)
        return client

    def edge(
        self, edge: int, source: Client, sink: Client, *, ends: tuple[int, int] = (1, 2), depth: int = 0
    ) -> Packet:
        fd = os.eventfd(0)
        try:
            body = struct.pack("QQQQQII", edge, *ends, source.session, sink.session, depth, 0)
            return self.order(O_EDGE, body, [fd])
        finally:
            os.close(fd)

    def route(
        self, source: int, owner: Client, to: list[socket.socket], sessions: list[Client] | None = None
    ) -> Packet:
        dests = b"".join(address(t) + struct.pack("II", 1 << 20, 0) for t in to).ljust(64 * 32, b"\0")
        ids = b"".join(struct.pack("Q", s.session) for s in sessions or []).ljust(64 * 8, b"\0")
        head = struct.pack("QQQIIII", source, owner.session, 4711, 9, 3, len(to), len(sessions or []))
        return self.order(O_ROUTE, head + dests + ids)

    def accept(self, source: int, sender: socket.socket | None, sessions: list[Client]) -> Packet:
        ids = b"".join(struct.pack("Q", s.session) for s in sessions).ljust(64 * 8, b"\0")
        return self.order(
            O_ACCEPT, struct.pack("Q", source) + address(sender) + struct.pack("II", 0, len(sessions)) + ids
        )

    def stats(self) -> dict[int, dict[str, int]]:
        """Counters by session; 0 are the totals."""
        body = self.order(O_STATS).body
        rows = list(struct.iter_unpack("14Q", body[8 + FAULTS :]))
        assert struct.unpack_from("I", body)[0] == len(rows)
        return {row[0]: dict(zip(COUNTERS, row, strict=True)) for row in rows}

    def gone(self) -> tuple[int, int, str]:
        """The session, error and text of the next SESSION_GONE."""
        packet = receive(self.control)
        assert packet is not None
        assert packet.type == E_SESSION_GONE
        session, error, _ = struct.unpack_from("QiI", packet.body)
        return session, error, packet.body[16:].split(b"\0")[0].decode()


@pytest.fixture
def start(bin_dir: Path, tmp_path: Path) -> Iterator["Start"]:
    """Starts datapath processes that end with the test."""
    with ExitStack() as stack:
        yield Start(Path(os.environ.get("QOS_TEST_SELENED_DP", bin_dir / "selened-dp")), tmp_path, stack)


class Start:
    """`start()` is a running datapath with a controller."""

    def __init__(self, binary: Path, folder: Path, stack: ExitStack) -> None:
        self.binary, self.folder, self.stack = binary, folder, stack
        self.count = 0

    def __call__(self, *options: str, path: Path | None = None) -> Datapath:
        self.count += 1
        return self.stack.enter_context(Datapath(self.binary, path or self.folder / f"{self.count}.dp", *options))
