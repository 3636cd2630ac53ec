# SPDX-License-Identifier: Apache-2.0
"""A selened inside the fuzzer: its core with a real selened-dp, and a loop that runs as long as an input needs."""

import asyncio
import atexit
import logging
import os
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from selened import sockets
from selened.core import Core
from selened.datapath import Datapath
from selened.settings import Settings
from selened.wire import Address, lib

from libqos import config


class Line(asyncio.Transport):
    """A connection in memory: the other side has said all it has to say, and reads what it is told."""

    def __init__(self, protocol: asyncio.StreamReaderProtocol, said: bytes, **extra: Any) -> None:
        super().__init__(extra)
        self._protocol = protocol
        self._closing = False
        protocol.connection_made(self)
        protocol.data_received(said)
        protocol.eof_received()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Read at once."""

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits."""

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


def streams(said: bytes, limit: int, **extra: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The two ends of a `Line`, as a server gets them."""
    reader = asyncio.StreamReader(limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    return reader, asyncio.StreamWriter(Line(protocol, said, **extra), protocol, reader, asyncio.get_running_loop())


class Daemon:
    """Made once. `run` gives one input its time; what it leaves open, or raises anywhere in the loop, is a finding."""

    def __init__(self, **settings: Any) -> None:
        logging.disable(logging.CRITICAL)
        self.folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.path = Path(self.folder.name)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._failed)
        self.failure: BaseException | None = None
        self.core = self.loop.run_until_complete(
            self._start(config.load(Settings, tool="fuzz", environ={}, overrides=settings))
        )
        atexit.register(self._stop)

    async def _start(self, settings: Settings) -> Core:
        datapath = Datapath(self.path / "dp", lambda *gone: self.core.session_gone(*gone), self._lost)
        os.environ.setdefault("QOS_SELENED_DP", str(Path(__file__).parents[2] / ".venv/bin/selened-dp"))
        stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # it says a line for each session
        await datapath.start([])
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
        sock, granted = sockets.udp(settings.address, range(1), settings.receive_buffer_bytes)
        with sock:
            (await datapath.order("selene_order", lib.SELENE_O_LISTEN, [sock.fileno()])).close()
            port = sock.getsockname()[1]
        core = Core(settings, datapath, Address(settings.address, port), granted)
        core.grace_over.set()
        return core

    def _lost(self, reason: str) -> None:
        self.failure = RuntimeError(f"selened-dp is lost: {reason}")

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failure = context.get("exception") or RuntimeError(context["message"])

    def _stop(self) -> None:
        self.loop.run_until_complete(self.core.datapath.stop())
        self.folder.cleanup()

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        before = len(os.listdir("/proc/self/fd"))
        self.loop.run_until_complete(asyncio.wait_for(main(), 20))
        self.core.notices.counts.clear()
        if self.failure is not None:
            raise self.failure
        assert not self.core.clients
        assert not self.core.router.endpoints
        assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left open"
