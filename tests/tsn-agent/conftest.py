# SPDX-License-Identifier: Apache-2.0
"""The commands as a person runs them, and an agent of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from libqos.rpc import RpcError
from libqos.rpcserver import Server
from tests.waiting import TIMEOUT_S as TIMEOUT_S
from tests.waiting import free_port as free_port
from tests.waiting import wait_until as wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from libqos.rpc import Peer

BIN: Final = Path(sys.executable).parent
HEADER: Final = struct.Struct("!HBBIQQQ")  # docs/tsn-talker.md
MAGIC: Final = 0x5154

Record = dict[str, Any]


class Command:
    """A running command; `records` is what it has said so far."""

    def __init__(self, words: Sequence[object]) -> None:
        self.process = subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.records: list[Record] = []
        self.errors = ""
        self._readers = [threading.Thread(target=self._read_records), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_records(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def of(self, kind: str, **facts: Any) -> list[Record]:
        """Its records of a kind, with these values."""
        return [
            record for record in list(self.records)
            if record["kind"] == kind and all(record.get(key) == value for key, value in facts.items())
        ]  # fmt: skip

    def wait_for(self, kind: str, **facts: Any) -> Record:
        """The first such record, which must come."""
        wait_until(lambda: self.of(kind, **facts) or self._ended(), f"{kind} {facts}; so far {self.records[-3:]}")
        found = self.of(kind, **facts)
        assert found, f"ended without {kind} {facts}: {self.records[-5:]} {self.errors}"
        return found[0]

    def _ended(self) -> bool:
        return self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers)

    def final(self) -> Record:
        """The last counters of the only stream."""
        (record,) = [record for record in self.records if record.get("final") and record["kind"] != "summary"]
        return record

    def end(self, number: int | None = None) -> int:
        """Send a signal, if there is one, and wait: the exit status."""
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class Traffic:
    """Starts talkers and listeners, and ends them with the test."""

    bin = BIN

    def __init__(self) -> None:
        self.port = free_port()
        self._commands: list[Command] = []

    def start(self, *words: object) -> Command:
        """One of the family by its name, or any command line."""
        first = BIN / str(words[0])
        self._commands.append(Command([first if first.exists() else words[0], *words[1:]]))
        return self._commands[-1]

    def listen(self, *arguments: object) -> Command:
        """A listener on the port of this test that is ready."""
        command = self.start(
            "tsn-listener", "--port", self.port, "--interval", "20ms", "--timeout", f"{TIMEOUT_S:g}s", *arguments
        )
        command.wait_for("listener")
        return command

    def talk(self, *arguments: object, destination: str = "127.0.0.1") -> Command:
        return self.start("tsn-talker", "--destination", destination, "--port", self.port, *arguments)

    @staticmethod
    def finish(talker: Command, listener: Command, stream: str = "stream") -> None:
        """Wait for the end of the talker, until all that it has sent has arrived, and end the listener."""
        assert talker.end() == 0, talker.errors
        (sent,) = talker.of("talker", stream=stream, final=True)
        listener.wait_for("listener", stream=stream, received=sent["sent"])
        assert listener.end(signal.SIGTERM) == 0, listener.errors

    @staticmethod
    def packet(number: int, launch_ns: int, *, stream: int = 1, flags: int = 0, send_ns: int | None = None) -> bytes:
        """A packet as tsn-talker sends it."""
        return HEADER.pack(MAGIC, 1, flags, stream, number, launch_ns, launch_ns if send_ns is None else send_ns)

    def close(self) -> None:
        for command in self._commands:
            command.close()


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    running = Traffic()
    yield running
    running.close()


class Agent:
    """What a talker or listener sees of tsn-agent: a real server on a socket, whose orders the test gives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: list[Record] = []
        self.attached: list[Record] = []
        self.refuses = False  # reports
        self._orders: queue.Queue[Record] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: Server | None = None

    def start(self) -> None:
        self._server = Server(self.path, {"attach": self._attach, "report": self._report})
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(TIMEOUT_S)

    def stop(self) -> None:
        """The agent goes away."""
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(TIMEOUT_S)
        self._server = None

    def order(self, **order: Any) -> None:
        self._orders.put(order)

    async def _attach(self, params: dict[str, Any], peer: Peer) -> AsyncIterator[Record]:
        self.attached.append(params)
        yield {"order": "idle"}
        while True:
            with contextlib.suppress(queue.Empty):
                yield self._orders.get_nowait()
            await asyncio.sleep(0.005)

    async def _report(self, params: dict[str, Any], peer: Peer) -> None:
        if self.refuses:
            raise RpcError("no-stream", "found a stream of another agent")
        self.reports.append(params)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """One that has to be started."""
    made = Agent(tmp_path / "agent.sock")
    yield made
    made.close()
