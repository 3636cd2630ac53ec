# SPDX-License-Identifier: Apache-2.0
"""lunar.aio.Lunar, on a daemon of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import lunar
import pytest
import selene
from lunar import aio


def test_publish_and_subscribe_in_a_loop(daemon: Any) -> None:
    async def receive(inbox: selene.aio.Sink) -> list[bytes]:
        return [bytes(message) async for message in inbox]

    async def main() -> None:
        async with aio.Lunar(lunar.Lunar(socket=daemon.socket, qos="slow,delivery=reliable")) as moon:
            inbox, other = await moon.subscribe("a"), await moon.subscribe("b")
            receiving = asyncio.create_task(receive(inbox))
            assert [await moon.publish("a", b"%d" % number) for number in range(3000)] == list(range(3000))
            assert await moon.publish_many("a", [b"3000", b"3001"]) == 2
            while inbox.sink.stats().messages < 3002:
                await asyncio.sleep(0)
            with pytest.raises(selene.SeleneTimeoutError):
                await other.get(0)
            await other.close()
        assert await receiving == [b"%d" % number for number in range(3002)]

    async def watched() -> None:
        await asyncio.wait_for(main(), 20)

    asyncio.run(watched())
