# SPDX-License-Identifier: Apache-2.0
"""A value that others may wait for to change, on asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")


class Watched(Generic[T]):
    """Holds a value; nothing is kept for those who are slow, so that any number of them costs nothing."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        """The value now. To set it wakes all that wait for a change."""
        return self._value

    @value.setter
    def value(self, value: T) -> None:
        self._value = value
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changes(self) -> AsyncIterator[T]:
        """The value now, and each other one that it has afterwards; who is slow misses those in between."""
        shown = self._value
        yield shown
        while True:
            changed = self._changed
            if self._value != shown:
                shown = self._value
                yield shown
            else:
                await changed.wait()
