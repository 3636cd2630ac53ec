# SPDX-License-Identifier: Apache-2.0
"""Lunar in asyncio: `await moon.publish(topic, data)`, `async for message in await moon.subscribe(topic)`.

What both are made of is in `selene.aio`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from selene import aio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    import lunar


class Lunar:
    """A connection of `lunar.Lunar` in the event loop that runs now; it is `moon`. As an async context manager it is
    closed at the end of the block."""

    def __init__(self, moon: lunar.Lunar) -> None:
        self.moon = moon
        self._publishers: dict[str, aio.Source] = {}

    async def publisher(self, topic: str) -> aio.Source:
        """The source of a topic; the first publication on a topic opens it. Raises SeleneError."""
        publisher = self._publishers.get(topic)
        if publisher is None or publisher.source.closed:
            source = await asyncio.to_thread(self.moon.publisher, topic)  # it asks the daemon
            publisher = self._publishers[topic] = aio.Source(source)
        return publisher

    async def publish(self, topic: str, message: bytes | bytearray | memoryview) -> int:
        """Publish a copy of `message`; returns the token. With reliable delivery it waits for slow subscribers. Raises
        SeleneError."""
        return await (await self.publisher(topic)).send(message)

    async def publish_many(self, topic: str, messages: Sequence[bytes]) -> int:
        """Publish copies of several messages; returns how many, from the first. Raises as `publish` when that is 0."""
        return await (await self.publisher(topic)).send_many(messages)

    async def subscribe(self, topic: str) -> aio.Sink:
        """The messages of a topic from now on: iterate over it, or `await` its `get`; `close` ends the subscription."""
        return aio.Sink(await asyncio.to_thread(self.moon.subscribe, topic))

    async def close(self) -> None:
        """Close the connection, as `lunar.Lunar.close`; iterations over its topics end."""
        await asyncio.to_thread(self.moon.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
