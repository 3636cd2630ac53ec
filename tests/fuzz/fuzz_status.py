# SPDX-License-Identifier: Apache-2.0
"""Questions on the status socket of selened."""

import socket

from selened import fsck
from selened.status import Status

from libqos.rpcserver import Limits, Server
from tests.fuzz.daemon import Daemon, streams

DAEMON = Daemon()
STEPS = [0]  # lines
SERVER = Server(DAEMON.path / "status", Status(DAEMON.core).methods, limits=Limits(handler_s=0.002))
ENDS = socket.socketpair()  # says who asks
fsck.INTERVAL_S = 0.0  # type: ignore[misc]


def test_one_input(data: bytes) -> None:
    STEPS[0] += 1 + data.count(b"\n")

    async def ask() -> None:
        await SERVER._connected(*streams(data, SERVER.limits.request_bytes, socket=ENDS[0]))

    DAEMON.run(ask)
    assert not SERVER._tasks
    assert not SERVER._users
