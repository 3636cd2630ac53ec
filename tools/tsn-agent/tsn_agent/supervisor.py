# SPDX-License-Identifier: Apache-2.0
"""A foreign daemon that is kept running, on asyncio: started again after it has ended, ended in good order with us.

Its lines go to the log, and the last of them are kept to say why it ended. It is killed if we are (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from tsn_agent.ptpconfig import program

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

_LINES: Final = 5
_LINE_BYTES: Final = 4096
_STOP_S: Final = 5.0  # from SIGTERM to SIGKILL
_STEADY_S: Final = 60.0  # who has run as long is started at once again


class Daemon:
    """A context manager: the program runs from its beginning to its end."""

    def __init__(self, name: str, command: Sequence[str], *, first_s: float = 0.5, most_s: float = 30.0) -> None:
        """`first_s`, `most_s`: the pause before the second start, and the longest, in seconds; it doubles."""
        self.name = name
        self.pid: int | None = None  # while it runs
        self.starts = 0
        self.last_error = ""  # why it ended last
        self._command = [program("setpriv", "util-linux"), "--pdeathsig", "KILL", *command]
        self._first_s, self._most_s = first_s, most_s
        self._said: deque[str] = deque(maxlen=_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def kill(self) -> None:
        """End it at once; it is started again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = self._first_s
        clock = asyncio.get_running_loop().time
        while True:
            begin = clock()
            try:
                await self._once()
            except OSError as error:
                self.last_error = f"{self.name} cannot be started: {error.strerror or error}"
            log.warning("%s", self.last_error)
            if clock() - begin > _STEADY_S:
                pause = self._first_s
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._most_s)

    async def _once(self) -> None:
        """From its start to its end."""
        self._said.clear()
        self.starts += 1
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, limit=_LINE_BYTES,
        )  # fmt: skip
        self.pid = process.pid
        try:
            await self._listen(process)
            status = await process.wait()
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            self.last_error = f"{self.name} ended ({how}): {'; '.join(self._said) or 'it said nothing'}"
        finally:
            self.pid = None
            self._process = None
            await self._stop(process)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than accepted: its beginning is gone
                continue
            if not line:
                return
            text = "".join(letter if letter.isprintable() else "?" for letter in line.decode(errors="replace").strip())
            self._said.append(text)
            log.info("%s: %s", self.name, text)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
