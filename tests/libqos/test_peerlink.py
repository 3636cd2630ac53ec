# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from libqos.errors import InputError
from libqos.peerlink import Link, LinkState
from libqos.peerserver import serve
from libqos.rpc import RpcError
from tests.libqos.peers import METHODS, add, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from libqos.peer import Peer


async def reach(link: Link, condition: Callable[[LinkState], object]) -> LinkState:
    async for state in link.state.changes():
        if condition(state):
            return state
    raise AssertionError


def test_it_comes_back(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/server.sock"

    async def main() -> None:
        async with Link(url, {}, first_s=0.01, most_s=0.05) as link:
            state = await reach(link, lambda state: state.attempts >= 3)
            assert not state.connected
            assert "server.sock: No such file" in state.last_error
            with pytest.raises(RpcError, match=r"not connected: .*No such file"):
                await link.call("add", [1, 2])
            for number in (1, 2):
                async with await serve(url, METHODS):
                    state = await reach(link, lambda state: state.connected)
                    assert state.connections == number
                    assert await link.call("add", [1, 2]) == 3
                    await link.notify("add", [1, 2])
                ended = await reach(link, lambda state: not state.connected)
                assert ended.since_ns > state.since_ns

    run(main())


def test_it_is_connected_when_it_is_ready(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/server.sock"
    said = []

    async def main() -> None:
        async def register(_: Peer, params: list[Any]) -> None:
            said.append(params)
            if len(said) == 1:
                raise RpcError("not-yet", "come again")

        async def ready(peer: Peer) -> None:
            await peer.call("register", ["agent 1"])

        async with (
            await serve(url, {"register": register, "add": add}) as server,
            Link(url, {}, ready=ready, first_s=0.01, most_s=0.05) as link,
        ):
            state = await reach(link, lambda state: state.connected)
            assert "come again" in state.last_error
            assert (state.attempts, state.connections) == (2, 1)
            assert said == [["agent 1"], ["agent 1"]]
            assert len(server.peers) == 1

    run(main())


def test_a_url_that_cannot_be_is_said_at_once() -> None:
    async def main() -> None:
        Link("http://cuc.example", {})

    with pytest.raises(InputError, match="accepted unix:"):
        asyncio.run(main())


def test_a_name_that_no_host_can_have_does_not_end_it() -> None:
    async def main() -> None:
        async with Link("tcp://cuc..example:1", {}, first_s=0.01, most_s=0.05) as link:
            state = await reach(link, lambda state: state.attempts >= 2)
            assert "label empty" in state.last_error

    run(main())
