# SPDX-License-Identifier: Apache-2.0
"""What agents of other hosts tell, and what they are told: the listener's agent sees a loss, the talker's can mend it.

msgpack-RPC (`libqos.peer`); the one method is the notification `report` with [stream, facts].
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, Self

from libqos.errors import QosError
from libqos.peerlink import Link
from libqos.peerserver import serve
from libqos.rpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from libqos.endpoint import TlsFiles
    from libqos.peer import Peer

log = logging.getLogger("tsn-agent")

Record = dict[str, Any]

_WAITING: Final = 256  # reports for one agent; the oldest is dropped and counted
_MOST_BACKOFF_S: Final = 2.0


class OtherAgents:
    """Links to other agents, and the place where they call us; a context manager in the agent's loop."""

    def __init__(self, listen: str, tls: TlsFiles | None, reported: Callable[[str, str, Record], None]) -> None:
        """`listen`: a URL of `libqos.endpoint`, empty for none. `reported` takes stream, kind and facts."""
        self._listen, self._tls, self._reported = listen, tls, reported
        self._stack = contextlib.AsyncExitStack()
        self._queues: dict[str, asyncio.Queue[Record]] = {}
        self._links: dict[str, Link] = {}
        self._silent: dict[str, dict[str, Record]] = {}  # of each URL and stream: what has not resumed
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0  # reports that found no room, or nobody

    async def __aenter__(self) -> Self:
        if self._listen:
            server = await serve(self._listen, {"report": self._report}, tls=self._tls)
            self._stack.push_async_callback(server.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _report(self, _: Peer, params: list[Any]) -> None:
        stream, facts = params if len(params) == 2 else (None, None)
        if not isinstance(stream, str) or not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
            raise RpcError("bad-request", "report: accepted [stream, facts]")
        self._reported(stream, "sequence", facts)

    def configure(self, urls: set[str]) -> None:
        """Connect to those that are to be told, so that nothing has to be opened when something happens."""
        for url in urls - self._queues.keys():
            self._queues[url], self._silent[url] = asyncio.Queue(_WAITING), {}
            task = asyncio.create_task(self._serve(url))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def state(self) -> list[Record]:
        """The agents that are told: url, connected, since, last_error."""
        return [
            {
                "url": url,
                "connected": state.connected,
                "since_ts_ns": state.since_ns,
                "last_error": state.last_error or None,
            }
            for url, state in ((url, link.state.value) for url, link in self._links.items())
        ]

    def tell(self, url: str, report: Record) -> None:
        """Hand a report on."""
        queue = self._queues.get(url)
        if queue is None:
            self.dropped += 1
            return
        if report.get("event") == "silent":
            self._silent[url][report["stream"]] = report
        elif report.get("event") == "resumed":
            self._silent[url].pop(report["stream"], None)
        if queue.full():
            queue.get_nowait()
            self.dropped += 1
        queue.put_nowait(report)

    async def _serve(self, url: str) -> None:
        async def again(peer: Peer) -> None:
            """Whoever has just started does not know what is silent."""
            for report in list(self._silent[url].values()):
                await peer.notify("report", _params(report))

        try:
            async with Link(url, {}, tls=self._tls, most_s=_MOST_BACKOFF_S, ready=again) as link:
                self._links[url] = link
                while True:
                    report = await self._queues[url].get()
                    try:
                        await link.notify("report", _params(report))
                    except QosError as error:  # what is told late helps nobody
                        self.dropped += 1
                        log.warning("%s: not told of stream %s: %s", url, report["stream"], error)
        except QosError as error:
            log.error("%s: cannot be told anything: %s", url, error)


def _params(report: Record) -> list[Any]:
    return [report["stream"], {name: value for name, value in report.items() if name not in ("stream", "kind")}]
