# SPDX-License-Identifier: Apache-2.0
"""A server with too many clients, a second one on its address, and strangers before its TLS."""

from __future__ import annotations

import contextlib
import resource
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import pytest

from libqos.endpoint import EndpointError, TlsFiles
from libqos.peer import Limits, Peer, connect
from libqos.peerserver import serve
from libqos.rpc import RpcError
from tests.certificates import certificates
from tests.libqos.peers import METHODS, add, run, served, stranger, until

if TYPE_CHECKING:
    from pathlib import Path


def test_a_thousand_connections_and_no_more(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"{hard} descriptors are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))

    async def main() -> None:
        async with served(tmp_path) as (server, url), contextlib.AsyncExitStack() as stack:
            for _ in range(1000):
                await stack.enter_async_context(stranger(url))
            await until(lambda: len(server.peers) == 1000)
            peer = await connect(url, {})
            closed = await peer.wait_closed()
            assert (
                closed.message == "closed by the peer: there are 1000 connections, and more are not accepted; try later"
            )
            assert server.counters.closed == {"busy": 1}
            await stack.aclose()
            await until(lambda: not server.peers)
            async with await connect(url, {}) as peer:
                assert await peer.call("add", [1, 2]) == 3

    try:
        run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_that_ends_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (_, url):
            peer = await connect(url, {})
            assert await peer.call("add", [1]) == 1
        closed = await peer.wait_closed()
        assert (closed.code, closed.message) == ("by-peer", "closed by the peer: the server ends")
        with pytest.raises(RpcError, match=r"server.sock: No such file"):
            await connect(url, {})

    run(main())


def test_two_servers_on_one_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with await serve("tcp://127.0.0.1:0", METHODS) as server:
            url = f"tcp://{server.addresses[0]}"
            with pytest.raises(EndpointError, match="Address already in use"):
                await serve(url, METHODS)
            async with await connect(url, {}) as peer:
                assert await peer.call("add", [1, 2]) == 3

    run(main())


def test_who_is_refused_at_the_door(tmp_path: Path) -> None:
    async def main() -> None:
        def look(peer: Peer) -> None:
            peer.close("closed", "not today")

        async with served(tmp_path, connected=look) as (_, url):
            closed = await (await connect(url, {})).wait_closed()
            assert closed.message == "closed by the peer: not today"

    run(main())


def test_names_that_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"peer\.ping"):
        run(serve(f"unix://{tmp_path}/server.sock", {"peer.ping": add}))  # type: ignore[arg-type]


def test_only_those_whom_the_authority_knows(tmp_path: Path, files: TlsFiles) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    certificates(elsewhere)
    foreign = TlsFiles(files.authority, elsewhere / "host.crt", elsewhere / "host.key")

    async def main() -> None:
        limits = Limits(connect_s=2.0)
        async with await serve("tls://127.0.0.1:0", METHODS, tls=files, limits=limits) as server:
            url = f"tls://{server.addresses[0]}"
            with pytest.raises(RpcError, match="certificate verify failed"):
                await connect(url, {}, tls=replace(files, authority=elsewhere / "ca.crt"))
            with contextlib.suppress(RpcError):  # a client of TLS 1.3 hears of it when it reads
                assert (await (await connect(url, {}, tls=foreign)).wait_closed()).code == "gone"
            await until(lambda: server.counters.handshakes_failed == 2)
            host, port = server.addresses[0].rsplit(":", 1)
            with socket.create_connection((host, int(port))) as plain:
                plain.sendall(msgpack.packb([0, 1, "add", []]))
                await until(lambda: server.counters.handshakes_failed == 3)
            with socket.create_connection((host, int(port))):  # says nothing
                await until(lambda: server.counters.handshakes_failed == 4)
            async with await connect(url, {}, tls=files) as peer:
                assert await peer.call("add", [1, 2]) == 3

    run(main())
