# SPDX-License-Identifier: Apache-2.0
"""What other daemons say: JSON Lines over TCP, to the side that listens and to the side that announces. The first
byte chooses the side; the input is what the other one says."""

import asyncio
import contextlib

from selened.peerlink import Link
from selened.peers import Peers, Remote
from selened.peertable import PeerError, encode
from selened.settings import Peer
from selened.wire import Address

from tests.fuzz.daemon import Daemon

PORT = 9
PEER = Peer(address="127.0.0.1", port=PORT)
HELLO = encode({"hello": {"version": 1, "host": 7, "port": PORT}})
DAEMON = Daemon()
PEERS = DAEMON.core.peers = Peers(DAEMON.core, None)


async def _start() -> tuple[asyncio.Server, Address]:
    await PEERS.start()
    PEERS.remotes[PEER.endpoint] = Remote(PEER)
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    return server, Address(*server.sockets[0].getsockname()[:2])


_said = b""


async def _answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_said)
    writer.write_eof()
    writer.close()


SERVER, ADDRESS = DAEMON.loop.run_until_complete(_start())


async def _listen(said: bytes) -> None:
    """We are told."""
    remote = PEERS.remotes[PEER.endpoint]
    reader, writer = await asyncio.open_connection(*DAEMON.core.address)
    writer.write(said)
    writer.write_eof()
    with contextlib.suppress(ConnectionResetError):
        while await reader.read(1 << 16):
            pass
    writer.transport.abort()
    while PEERS._tasks:
        await asyncio.sleep(0)
    await PEERS._withdraw(remote)
    assert not DAEMON.core.router.members


async def _announce(said: bytes) -> None:
    """We tell."""
    global _said
    _said = said
    link = Link(DAEMON.core, ADDRESS, lambda: PEERS.hello, None)
    link._task.cancel()
    with contextlib.suppress(PeerError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        await link._connect()
    await asyncio.sleep(0)


def test_one_input(data: bytes) -> None:
    how, said = data[0] if data else 0, data[1:]
    said = HELLO + said if how & 2 else said
    DAEMON.run(lambda: _announce(said) if how & 1 else _listen(said))
