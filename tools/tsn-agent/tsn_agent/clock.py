# SPDX-License-Identifier: Apache-2.0
"""The clock as the daemon tells of it: its status as records, and an event when it becomes synchronised or ceases."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final, Self

from tsn_agent.ptp import Ptp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tsn_agent.ptp import PtpStatus
    from tsn_agent.settings import ClockSettings

Record = dict[str, Any]

_AGAIN_S: Final = 10.0  # so that whoever waits knows that we are there


class Clock:
    """A context manager: linuxptp runs from its beginning to its end.

    `directory` is ours alone; `happened` takes the events. Raises InputError if linuxptp is not installed."""

    def __init__(self, settings: ClockSettings, directory: Path, happened: Callable[[Record], None]) -> None:
        self._ptp = Ptp(settings, directory, limits=settings.limits())
        self._happened = happened
        self._task: asyncio.Task[None] | None = None

    def record(self) -> Record:
        """What is known now."""
        return _record(self._ptp.status.value)

    async def follow(self) -> AsyncIterator[Record]:
        """What is known now, and when it changes; after ten seconds without a change the same again."""
        while True:
            shown = self._ptp.status.value
            yield _record(shown)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    async for status in self._ptp.status.changes():
                        if status != shown:
                            break

    async def synchronised(self) -> None:
        """Wait until it is."""
        async for record in self.follow():
            if record["synchronised"]:
                return

    async def __aenter__(self) -> Self:
        await self._ptp.__aenter__()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._ptp.__aexit__()

    async def _watch(self) -> None:
        synchronised = False
        async for status in self._ptp.status.changes():
            if status.synchronised != synchronised:
                synchronised = status.synchronised
                self._happened({**_record(status), "event": "synchronised" if synchronised else "not_synchronised"})


def _record(status: PtpStatus) -> Record:
    return {"kind": "clock", "ts_ns": time.time_ns(), **dataclasses.asdict(status)}
