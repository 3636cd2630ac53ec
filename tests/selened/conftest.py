# SPDX-License-Identifier: Apache-2.0
"""A selened of its own for a test, and a client that speaks the protocol packet by packet."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selened import wire
from selened.wire import lib

from libqos import rpc
from tests.waiting import TIMEOUT_S as TIMEOUT_S
from tests.waiting import free_port as free_port
from tests.waiting import wait_until as wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Client:
    """A client on the control socket."""

    def __init__(self, path: Path, *, flags: int = 0, greet: bool = True, **hello: Any) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(os.fspath(path))
        self.number = 0
        self.pushed: list[bytes] = []
        self.fds: list[int] = []
        self.session: socket.socket | None = None
        self.udp: socket.socket | None = None
        if greet:
            self.greet(flags, **hello)

    def greet(self, flags: int = 0, *, shown: tuple[int, ...] = (), **hello: int) -> None:
        with open("/proc/self/ns/net", "rb") as netns:
            answer = self.ask(
                "selene_hello", lib.SELENE_C_HELLO, [netns.fileno(), *shown], flags=flags, pid=os.getpid(),
                program=b"test", **hello,
            )  # fmt: skip
        self.welcome = wire.parse("selene_welcome", answer)
        if not self.welcome.flags & wire.RESUME:
            self.session = socket.socket(fileno=self.fds.pop(0))
            if self.welcome.flags & wire.DIRECT:
                self.udp = socket.socket(fileno=self.fds.pop(0))

    def send(self, struct: str, type_: int, fds: list[int] | None = None, **fields: Any) -> int:
        self.number += 1
        socket.send_fds(self.socket, [wire.build(struct, type_, self.number, **fields)], fds or [])
        return self.number

    def receive(self) -> bytes:
        data, fds, _, _ = socket.recv_fds(self.socket, wire.MAX_PACKET, wire.MAX_FDS)
        self.fds += fds
        return data

    def ask(self, struct: str, type_: int, fds: list[int] | None = None, **fields: Any) -> bytes:
        """The answer to a request; what was pushed before it is in `pushed`. Raises RefusedError."""
        number = self.send(struct, type_, fds, **fields)
        while True:
            data = self.receive()
            if not data:
                raise ConnectionResetError("selened closed the connection")
            head = wire.header(data)
            if head.type == lib.SELENE_S_ERROR:
                error = wire.parse("selene_error", data)
                raise wire.RefusedError(error.error, wire.text_of(error.text))
            if head.request == number:
                return data
            self.pushed.append(data)

    def stream(self, handle: int = 1, stream: int = 7, **policy: Any) -> Any:
        answer = self.ask("selene_stream_open", lib.SELENE_C_STREAM, handle=handle, stream=stream, **policy)
        return wire.parse("selene_stream_ok", answer)

    def _endpoint(self, type_: int, channel: int, name: str | bytes, fds: list[int], fields: dict[str, int]) -> Any:
        raw = name.encode() if isinstance(name, str) else name
        given: dict[str, Any] = {"handle": 1, "channel": channel, "index": self.number}
        given |= {"name": raw, "name_length": len(raw)} | fields
        answer = self.ask("selene_endpoint_open", type_, fds, **given)
        return wire.parse("selene_endpoint_ok", answer)

    def source(self, channel: int, name: str | bytes = "", **fields: int) -> Any:
        return self._endpoint(lib.SELENE_C_SOURCE, channel, name, [], fields)

    def sink(self, channel: int, name: str | bytes = "", **fields: int) -> Any:
        event = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            return self._endpoint(lib.SELENE_C_SINK, channel, name, [event], fields)
        finally:
            os.close(event)

    def remove(self, endpoint: int, kind: int) -> None:
        self.ask("selene_close", lib.SELENE_C_CLOSE, id=endpoint, kind=kind)

    def next_push(self) -> bytes:
        """The next packet that selened pushes."""
        return self.pushed.pop(0) if self.pushed else self.receive()

    def routes(self) -> list[tuple[int, int, int, list[tuple[int, int]]]]:
        """S_ROUTE packets pushed so far: source, epoch, flags, (port, window) of each destination."""
        found = []
        for data in self.pushed:
            if wire.header(data).type == lib.SELENE_S_ROUTE:
                dests = wire.records("selene_route", "selene_dest", data)
                head = wire.parse("selene_route", data[: wire.ffi.sizeof("struct selene_route")])
                ports = [(item.address.port, item.window) for item in dests]
                found.append((head.source, head.epoch, head.flags, ports))
        return found

    def accepts(self) -> list[tuple[int, list[tuple[int, int, int]]]]:
        """S_ACCEPT packets pushed so far: sink, (source, port, flags) of each entry."""
        found = []
        for data in self.pushed:
            if wire.header(data).type == lib.SELENE_S_ACCEPT:
                entries = wire.records("selene_accept", "selene_accept_entry", data)
                head = wire.parse("selene_accept", data[: wire.ffi.sizeof("struct selene_accept")])
                found.append((head.sink, [(item.source, item.address.port, item.flags) for item in entries]))
        return found

    def session_packets(self) -> list[int]:
        """Types of the packets that the datapath process has sent to the session socket."""
        assert self.session is not None
        types = []
        self.session.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self.session, wire.MAX_PACKET, wire.MAX_FDS)
                for fd in fds:
                    os.close(fd)
                if not data:
                    break
                types.append(wire.header(data).type)
        return types

    def close(self) -> None:
        for item in (self.socket, self.session, self.udp):
            if item is not None:
                item.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Daemon:
    """A selened process with its datapath process."""

    def __init__(self, directory: Path, name: str = "s", config: str = "", *arguments: str, port: int = 0) -> None:
        self.directory = directory
        self.path = directory / f"{name}.sock"
        self.port = port or free_port()
        self.config = directory / f"{name}.toml"
        self.config.write_text(config)
        self.log = directory / f"{name}.log"
        self.arguments = arguments
        self.clients: list[Client] = []

    def start(self) -> Daemon:
        """Start it, and wait until it serves."""
        begin = self.said().count(" ready at ")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, stdout=log)
        wait_until(lambda: self.said().count(" ready at ") > begin or self.process.poll() is not None, "READY")
        assert self.process.poll() is None, self.said()
        return self

    def command(self) -> list[str]:
        return [
            sys.executable, "-c", "from selened.main import main; main()", "--socket", os.fspath(self.path),
            "--port", str(self.port), "--config", os.fspath(self.config), *self.arguments,
        ]  # fmt: skip

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def client(self, **arguments: Any) -> Client:
        client = Client(self.path, **arguments)
        self.clients.append(client)
        return client

    def ask(self, method: str, **params: Any) -> list[dict[str, Any]]:
        """The records of a status method."""
        records: list[dict[str, Any]] = rpc.call(
            f"{self.path}.status", {"method": method, "params": params}, timeout=TIMEOUT_S
        )
        return records

    def info(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.ask("info") if record["kind"] == kind]

    def notices(self) -> dict[str, int]:
        notices: dict[str, int] = self.info("daemon")[0]["notices"]
        return notices

    def datapath_pid(self) -> int:
        pid: int = self.info("daemon")[0]["datapath"]["pid"]
        return pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        try:
            for client in self.clients:
                client.close()
            if self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.stop()
        finally:
            self.process.kill()
            self.process.wait()
        wait_until(lambda: not _listens(Path(f"{self.path}.dp")), "the end of selened-dp")


def memory(pid: int, field: str) -> int:
    """A field of a process' status in /proc (`RssAnon`, `VmSize`, …), in bytes."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status[field].split()[0]) << 10


def _listens(path: Path) -> bool:
    """Whether a datapath process that lost its daemon is still there; one without sessions ends by itself, so it is
    told to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(os.fspath(path))
            sock.send(wire.bare(lib.SELENE_O_HELLO, 1))
            sock.recv(wire.MAX_PACKET)
            sock.send(wire.bare(lib.SELENE_O_STOP, 2))
            sock.recv(wire.MAX_PACKET)
        except OSError:
            return False
        return True


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], None]:
    """`until(condition, what)`: wait until something holds."""
    return wait_until


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Make selened processes: `make_daemon(name, config, *arguments, port=...)`, not started yet."""
    made: list[Daemon] = []

    def make(name: str = "s", config: str = "", *arguments: str, port: int = 0) -> Daemon:
        made.append(Daemon(tmp_path, name, config, *arguments, port=port))
        return made[-1]

    with contextlib.ExitStack() as stack:  # every one is ended, whatever happens to the others
        yield make
        for item in made:
            if hasattr(item, "process"):
                stack.callback(item.close)


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A running selened with the default configuration."""
    return make_daemon().start()


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running selened for all tests of a file that leave it as they found it."""
    daemon = Daemon(tmp_path_factory.mktemp("shared")).start()
    yield daemon
    daemon.close()


@pytest.fixture
def peers(make_daemon: Callable[..., Daemon]) -> tuple[Daemon, Daemon]:
    """Two running selened, connected to each other."""
    ports = free_port(), free_port()
    configs = [f'[[peers]]\naddress = "127.0.0.1"\nport = {port}\n' for port in ports]
    left = make_daemon("left", configs[1], port=ports[0]).start()
    right = make_daemon("right", configs[0], port=ports[1]).start()
    for item in (left, right):
        wait_until(lambda item=item: connected(item), "the connection of the peers")  # type: ignore[misc]
    return left, right


def connected(daemon: Daemon) -> bool:
    """Whether all peers of a daemon are connected both ways, with their snapshots taken in."""
    peers = daemon.info("peer")
    return all(
        peer["state"] == "connected" and peer["announces"] and peer["host"] and peer["sent"] == peer["acknowledged"]
        for peer in peers
    )
