# SPDX-License-Identifier: Apache-2.0
"""Questions on the status socket of selened, over the real socket."""

import asyncio

from selened.status import Status

from libqos.rpcserver import Server
from tests.fuzz.daemon import Daemon

DAEMON = Daemon()
PATH = DAEMON.path / "status"
SERVER = Server(PATH, Status(DAEMON.core).methods)
DAEMON.loop.run_until_complete(SERVER.start())


def test_one_input(data: bytes) -> None:
    async def ask() -> None:
        reader, writer = await asyncio.open_unix_connection(PATH, limit=1 << 24)
        writer.write(data)
        writer.write_eof()
        while await reader.read(1 << 16):
            pass
        writer.close()
        await writer.wait_closed()
        while SERVER._tasks:
            await asyncio.sleep(0)

    DAEMON.run(ask)
