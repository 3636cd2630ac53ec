# SPDX-License-Identifier: Apache-2.0
"""What tests of peers share: methods, a server, and a connection that says what it likes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgpack

from libqos.peerserver import Server, serve
from libqos.rpc import RpcError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from libqos.peer import Limits, Peer

WATCHDOG_S: Final = 20.0


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a task that is left behind fails it."""

    async def watched() -> None:
        async with asyncio.timeout(WATCHDOG_S):
            await main
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watched())


async def until(condition: Callable[[], object]) -> None:
    """The watchdog of `run` ends it."""
    while not condition():
        await asyncio.sleep(0.005)


async def add(_: Peer, params: list[Any]) -> Any:
    return sum(params)


async def echo(_: Peer, params: list[Any]) -> Any:
    return params


async def back(peer: Peer, params: list[Any]) -> Any:
    """Call what the caller offers."""
    return await peer.call(params[0], params[1:])


async def refuse(_: Peer, __: list[Any]) -> None:
    raise RpcError("no-stream", "found stream 5, accepted 1 to 4")


async def fail(_: Peer, __: list[Any]) -> None:
    raise KeyError("a bug")


async def nonsense(_: Peer, __: list[Any]) -> Any:
    return object()


async def never(_: Peer, __: list[Any]) -> None:
    await asyncio.Event().wait()


METHODS = {"add": add, "back": back, "echo": echo, "refuse": refuse, "fail": fail, "nonsense": nonsense, "never": never}


@contextlib.asynccontextmanager
async def served(tmp_path: Path, limits: Limits | None = None, **how: Any) -> AsyncIterator[tuple[Server, str]]:
    url = f"unix://{tmp_path}/server.sock"
    async with await serve(url, how.pop("methods", METHODS), limits=limits, **how) as server:
        yield server, url


@contextlib.asynccontextmanager
async def stranger(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says what it likes."""
    reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def last_words(reader: asyncio.StreamReader) -> list[Any]:
    """What the server has said before it closed."""
    unpacker = msgpack.Unpacker()
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            unpacker.feed(data)
    return list(unpacker)[-1]  # type: ignore[no-any-return]
