# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

from libqos.watched import Watched


def test_each_change_once_and_the_last_one_always() -> None:
    async def main() -> None:
        watched = Watched(0)
        fast: list[int] = []
        slow: list[int] = []

        async def look(seen: list[int], gate: asyncio.Event | None) -> None:
            async for value in watched.changes():
                seen.append(value)
                if gate is not None:
                    await gate.wait()
                if value == 3:
                    return

        gate = asyncio.Event()
        looking = asyncio.gather(look(fast, None), look(slow, gate))
        for value in (1, 1, 2, 3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            watched.value = value
        gate.set()
        await looking
        assert fast == [0, 1, 2, 3]
        assert slow == [0, 3]

    asyncio.run(main())
