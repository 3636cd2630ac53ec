# SPDX-License-Identifier: Apache-2.0
"""The agent's end of its connection with the controller of the network (thesis 4.2.1): both sides call.

The agent connects, says who it is (`hello`), reports (`state`, `event`), and asks (`request`). The controller calls
what the control socket offers, with the same checks. docs/tsn-agent.md has every method.

What must hold, whatever the controller does:
- its calls are worked on one at a time, each to its end even if the connection ends first: so who asks on the sockets
  waits for one of them at most;
- events wait in a queue that is bounded; the oldest is dropped, and counted. One leaves the queue when the controller
  has answered: who loses the connection may hear it twice, which `seq` tells;
- who leaves a report without an answer is taken for dead, and connected to again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import socket
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import libqos
from libqos import rpc
from libqos.endpoint import TlsFiles
from libqos.errors import QosError
from libqos.peer import Limits
from libqos.peerlink import Link
from libqos.rpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from libqos.peer import Method as PeerMethod
    from libqos.peer import Peer
    from tsn_agent.settings import ControllerSettings

    Method = Callable[[dict[str, Any], rpc.Peer], Awaitable[list[dict[str, Any]]]]

log = logging.getLogger("tsn-agent")

Record = dict[str, Any]

_METHODS: Final = ("apply", "clear", "show", "capabilities", "streams", "request", "release", "info")
_EVENTS: Final = 256  # that wait for the controller
_METHOD_S: Final = 60.0  # as long as on the control socket
_REQUEST_S: Final = 30.0  # the controller may have to ask others
_PLACE: Final = ("stream", "via", "offset_ns", "period_ns")
_WAY: Final = ("stream", "interface", "paths", "usable", "moving", "stopped")


class Controller:
    """A context manager: connected, or trying to, from its beginning to its end.

    `methods` are the agent's, as its sockets have them; `links` gives name, up and carrier of each
    interface. Raises InputError for files that cannot be used."""

    def __init__(
        self, settings: ControllerSettings, methods: Mapping[str, Method], links: Callable[[], list[Record]]
    ) -> None:
        tls = None
        if settings.authority:
            tls = TlsFiles(Path(settings.authority), Path(settings.certificate), Path(settings.key))
        self.name = settings.name or socket.gethostname()
        self.decides = settings.requests == "controller"  # who gives streams their places
        self._settings, self._methods, self._links = settings, methods, links
        self._asker = rpc.Peer(os.getpid(), os.getuid(), os.getgid())
        self._link = Link(
            settings.url, {name: self._method(name) for name in _METHODS}, tls=tls, ready=self._hello,
            limits=Limits(method_s=_METHOD_S),
        )  # fmt: skip
        self._events: deque[Record] = deque()
        self._seq = self._dropped = self._refused = 0
        self._waiting = asyncio.Event()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def info(self) -> Record:
        """The link's state: connected to whom, since when, why it last ended, and what waits or was dropped."""
        return {
            **dataclasses.asdict(self._link.state.value), "name": self.name, "requests": self._settings.requests,
            "waiting_events": len(self._events), "dropped_events": self._dropped, "refused_reports": self._refused,
            "closed": dict(self._link.counters.closed),
        }  # fmt: skip

    def event(self, record: Record) -> None:
        """Tell the controller, as soon as it is there."""
        self._seq += 1
        if len(self._events) >= _EVENTS:
            self._events.popleft()
            self._dropped += 1
        self._events.append({**record, "seq": self._seq})
        self._waiting.set()

    async def request(self, params: Record) -> list[Record]:
        """Ask for a place for a stream, and give the answer. Raises RpcError: the controller's, or "no-controller"."""
        if self._link.peer is None:
            why = self._link.state.value.last_error or "it has not answered yet"
            raise RpcError("no-controller", f"the controller decides about streams, and is not connected: {why}")
        answer = await self._link.call("request", [{**params, "device": self.name}], _REQUEST_S)
        if isinstance(answer, list) and all(isinstance(item, dict) and "kind" in item for item in answer):
            with contextlib.suppress(TypeError, ValueError):  # what JSON does not have
                return _plain(answer)  # type: ignore[no-any-return]
        raise RpcError("bad-reply", f"{self._settings.url}: request: accepted a list of records, each with a kind")

    async def reconfigure(self, fault: Record) -> str | None:
        """Ask by which interface a stream goes on after a fault; None where it does not say in time."""
        if self._link.peer is None or not self._settings.reconfigure_ms:
            return None
        try:
            params = [_plain({**fault, "device": self.name})]
            answer = await self._link.call("reconfigure", params, self._settings.reconfigure_ms / 1000)
        except QosError as error:
            log.warning("the controller does not reconfigure: %s", error)
            return None
        name = answer.get("interface") if isinstance(answer, dict) else None
        if answer is not None and not isinstance(name, str):
            log.warning("reconfigure: found %r, accepted nil, or a table with interface", answer)
        return name if isinstance(name, str) else None

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        for work in (self._tell_events(), self._tell_state()):
            self._spawn(work)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.__aexit__()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- what the controller calls ----

    def _method(self, name: str) -> PeerMethod:
        async def answer(_: Peer, params: list[Any]) -> Any:
            if len(params) > 1 or not all(isinstance(param, dict) for param in params):
                raise RpcError("bad-request", f"{name}: accepted one table of parameters, or none")
            given = params[0] if params else {}
            if name == "apply":
                given = {"name": "controller", **given}
            await self._turn.acquire()
            task = self._spawn(self._methods[name](given, self._asker))
            task.add_done_callback(self._done)
            return _plain(await asyncio.shield(task))

        return answer

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._turn.release()
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more

    # ---- what the agent tells ----

    async def _ask(self, name: str) -> list[Record]:
        try:
            return await self._methods[name]({}, self._asker)
        except QosError:
            raise
        except Exception as error:  # an interface that goes while it is asked, or a bug: reports go on
            log.exception("report to the controller: %s failed", name)
            raise RpcError("internal", f"{name} failed; the log says why") from error

    async def _hello(self, peer: Peer) -> None:
        capabilities = await self._ask("capabilities")
        hello = {**await self._state(), "version": libqos.__version__, "capabilities": capabilities}
        await peer.call("hello", [_plain(hello)])

    async def _state(self) -> Record:
        resources, streams, paths = await self._ask("seen"), await self._ask("streams"), await self._ask("paths")
        (info,) = await self._ask("info")
        wanted = [[record["resource"], record["name"], record["wanted"]] for record in resources]
        states = Counter({"ok": 0, "missing": 0, "differs": 0})
        states.update(record["state"] for record in resources)
        return {
            "name": self.name, "ts_ns": time.time_ns(), "applied": {"digest": digest(wanted), **states},
            "streams": [{key: record[key] for key in _PLACE} for record in streams],
            "paths": [{key: record[key] for key in _WAY} for record in paths],
            "dropped_events": self._dropped, "daemon": info,
            "interfaces": self._links(),
        }  # fmt: skip

    async def _tell_state(self) -> None:
        while True:
            peer = await self._connected()
            try:
                await self._report(peer, "state", await self._state())
            except QosError as failure:
                log.warning("no report to the controller: %s", failure)
            await asyncio.sleep(self._settings.report_s)

    async def _tell_events(self) -> None:
        while True:
            self._waiting.clear()
            if not self._events:
                await self._waiting.wait()
            peer = await self._connected()
            record = self._events[0]
            if await self._report(peer, "event", record) and self._events[0] is record:
                self._events.popleft()

    async def _connected(self) -> Peer:
        async for state in self._link.state.changes():
            peer = self._link.peer
            if state.connected and peer is not None and peer.closed is None:
                return peer
        raise AssertionError  # it does not end

    async def _report(self, peer: Peer, name: str, record: Record) -> bool:
        """Whether it has arrived, be it refused; the connection ends where no answer comes."""
        try:
            await peer.call(name, [_plain(record)])
        except QosError as error:
            if peer.closed is None and isinstance(error, RpcError) and error.code == "timeout":
                peer.close("unanswered", f"{name}: no answer")
            if peer.closed is not None:
                return False
            self._refused += 1
            log.log(logging.WARNING if self._refused == 1 else logging.DEBUG, "a report is refused: %s", error)
        return True


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys and no spaces: hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """With lists for tuples, as on the sockets: MessagePack here takes no others."""
    return rpc.decode(rpc.encode({"value": value}))["value"]
