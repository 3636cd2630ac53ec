# SPDX-License-Identifier: Apache-2.0
"""What other daemons say: JSON Lines, to the side that listens and to the side that announces. The first byte chooses
the side; the input is what the other one says."""

import asyncio
import contextlib
from typing import Any

from selened.peerlink import Link
from selened.peers import Peers, Remote
from selened.peertable import MAX_LINE_BYTES, PeerError, encode
from selened.settings import Peer

from tests.fuzz.daemon import Daemon, Line, streams

PEER = Peer(address="127.0.0.1", port=9)
HELLO = encode({"hello": {"version": 1, "host": 7, "port": PEER.port}})
DAEMON = Daemon()
STEPS = [0]  # lines
PEERS = DAEMON.core.peers = Peers(DAEMON.core, None)
REMOTE = PEERS.remotes[PEER.endpoint] = Remote(PEER)


async def _listen(said: bytes) -> None:
    """We are told."""
    await PEERS._connected(*streams(said, MAX_LINE_BYTES, peername=PEER.endpoint))
    assert not PEERS._tasks
    await PEERS._withdraw(REMOTE)
    assert not DAEMON.core.router.members


async def _announce(said: bytes) -> None:
    """We tell."""

    async def connect(make: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        protocol = make()
        return Line(protocol, said), protocol

    DAEMON.loop.create_connection = connect  # type: ignore[assignment]
    link = Link(DAEMON.core, PEER.endpoint, lambda: PEERS.hello, None)
    link._task.cancel()
    with contextlib.suppress(PeerError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        await link._connect()
    await asyncio.sleep(0)


def test_one_input(data: bytes) -> None:
    how, said = data[0] if data else 0, data[1:]
    STEPS[0] += 1 + said.count(b"\n")
    said = HELLO + said if how & 2 else said
    DAEMON.run(lambda: _announce(said) if how & 1 else _listen(said))
