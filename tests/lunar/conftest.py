# SPDX-License-Identifier: Apache-2.0
"""A selened of the test's own, and the commands as a person runs them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from libqos import rpc
from tests.waiting import TIMEOUT_S as TIMEOUT_S
from tests.waiting import free_port as free_port
from tests.waiting import wait_until as wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN: Final = Path(sys.executable).parent
TOPIC: Final = "test/topic"


class Command:
    """A running command with pipes."""

    def __init__(self, daemon: Daemon, *arguments: str, **options: Any) -> None:
        # Ctrl-C has to reach it also where the tests are run in the background, with SIGINT ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [str(BIN / arguments[0]), *arguments[1:]], env=daemon.environment, stdin=subprocess.PIPE,
                stderr=subprocess.PIPE, **{"stdout": subprocess.PIPE, **options},
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read_line(self) -> bytes:
        """The next line of stdout, which must come."""
        assert self.process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], TIMEOUT_S)[0]:
                pytest.fail(f"no line on stdout; found {line!r}")
            part = os.read(self.process.stdout.fileno(), 1)
            if not part:
                pytest.fail(f"stdout has ended; stderr: {self.end()[2].decode()}")
            line += part
        return line

    def end(self, data: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Write, close stdin, wait: exit code, what is left of stdout, stderr."""
        out, err = self.process.communicate(data, timeout=TIMEOUT_S)
        return self.process.returncode, out, err

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()


class Daemon:
    """A running selened."""

    def __init__(self, folder: Path, name: str, port: int, peer: int | None = None) -> None:
        self.socket = folder / f"{name}.sock"
        config = folder / f"{name}.toml"
        text = f'port = {port}\nsocket = "{self.socket}"\n'
        if peer is not None:
            text += f'[[peers]]\naddress = "127.0.0.1"\nport = {peer}\n'
        config.write_text(text)
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([BIN / "selened", "--config", config], stdout=log, stderr=log)
        wait_until(lambda: self._serves() or self.process.poll() is not None, "selened")
        assert self.process.poll() is None, self.log.read_text()
        self.environment = {**os.environ, "SELENE_SOCKET": str(self.socket)}
        self.commands: list[Command] = []

    def _serves(self) -> bool:
        return Path(f"{self.socket}.status").exists()

    def start(self, *arguments: str, **options: Any) -> Command:
        """Start a command of this host."""
        self.commands.append(Command(self, *arguments, **options))
        return self.commands[-1]

    def run(self, *arguments: str, data: bytes = b"") -> tuple[int, bytes, str]:
        """Run a command to its end: exit code, stdout, stderr."""
        code, out, err = self.start(*arguments).end(data)
        return code, out, err.decode()

    def info(self, kind: str) -> list[dict[str, Any]]:
        """What `selene info` says of one kind."""
        records = rpc.call(f"{self.socket}.status", {"method": "info", "params": {}}, timeout=TIMEOUT_S)
        return [record for record in records if record["kind"] == kind]

    def sinks(self) -> int:
        """Subscribers on this host."""
        return len(self.info("sink"))

    def announced(self) -> bool:
        """Whether all peers know what is here, and have told what is there."""
        return all(
            peer["state"] == "connected" and peer["announces"] and peer["sent"] == peer["acknowledged"]
            for peer in self.info("peer")
        )

    def subscribe(self, *arguments: str, topic: str = TOPIC, **options: Any) -> Command:
        """Start lunar-sub, and wait until it is known here and to the peers."""
        before = self.sinks()
        command = self.start("lunar-sub", topic, *arguments, **options)
        wait_until(lambda: self.sinks() > before or command.process.poll() is not None, "the subscriber")
        wait_until(self.announced, "the peers")
        return command

    def publish(self, data: bytes, *arguments: str, topic: str = TOPIC) -> tuple[int, bytes, str]:
        """Run lunar-pub once somebody has subscribed."""
        return self.run("lunar-pub", topic, "--wait-for-subscriber", str(TIMEOUT_S), *arguments, data=data)

    def close(self) -> None:
        for command in self.commands:
            command.kill()
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture(scope="module")
def _daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("selened"), "a", free_port())
    yield running
    running.close()


@pytest.fixture
def daemon(_daemon: Daemon) -> Iterator[Daemon]:
    """A running selened, whose commands are ended with the test."""
    yield _daemon
    for command in _daemon.commands:
        command.kill()
    _daemon.commands.clear()
    wait_until(lambda: _daemon.sinks() == 0, "the end of all subscriptions")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """Two hosts that are peers."""
    ports = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        a = Daemon(tmp_path, "a", ports[0], ports[1])
        stack.callback(a.close)
        b = Daemon(tmp_path, "b", ports[1], ports[0])
        stack.callback(b.close)
        wait_until(lambda: a.announced() and b.announced(), "the connection of the peers")
        yield a, b
