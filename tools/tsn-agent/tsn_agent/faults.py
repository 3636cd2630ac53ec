# SPDX-License-Identifier: Apache-2.0
"""Finds that a stream has failed, says so with the evidence, and moves it to a way that works (thesis 4.2.2).

Three things tell of faults: the kernel of an interface that goes down (`links`), the talker of launch times that were
missed or invalid, and the listener of numbers that did not come, which its own agent hands on to the talker's.

A move: the talkers of the stream are told to stop, and to start again by the next way whose interface is up, in the
cycles of the schedule there. Where the listener has told of the loss it has to see the stream again within
`confirm_ms`, or the next way is taken; each other way once. After that the stream stays for `hold_ms`, whatever the
listener tells, so that a host which is too slow is not taken for two broken ways.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tsn_agent.wanted import Resources, Stream, Wanted

Record = dict[str, Any]

_IDLE_S: Final = 5.0  # between two orders; those who wait give up after ten seconds
_ORDERS: Final = 64  # that may wait for one talker
_ALARM_S: Final = 1.0  # of one stream and name: so often at most; `told` counts all
_DOWN: Final = ("carrier_lost", "down", "removed")
# What a listener or talker tells, and the alarm that is raised for it. Only the first of them moves a stream.
_ALARMS: Final = {
    "silent": "silent-loss", "lost": "loss", "late": "late", "duplicated": "duplicates", "reordered": "reordering",
    "launch-missed": "launch-missed", "launch-invalid": "launch-invalid", "send-failed": "send-failed",
}  # fmt: skip


@dataclass
class _State:
    """Of one stream: which way it takes."""

    stream: Stream
    active: int = 0
    moving: asyncio.Task[None] | None = None
    stopped: bool = False  # no way was usable: until an interface comes back
    silent: bool = False  # the listener sees nothing, as far as it has told
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.TimerHandle | None = None
    moves: int = 0
    told: Counter[str] = field(default_factory=Counter)


class Faults:
    """The streams of one agent. All of it runs in the agent's loop."""

    def __init__(self, happened: Callable[[Record], None], tell: Callable[[str, Record], None]) -> None:
        """`happened` takes events; `tell` hands a report to the agent at a URL."""
        self._happened = happened
        self._tell = tell
        self._states: dict[str, _State] = {}
        self._talkers: dict[str, set[asyncio.Queue[Record]]] = {}
        self._below: dict[str, str] = {}  # VLAN to interface
        self._base: dict[str, int] = {}  # base time of the schedule by interface
        self._down: set[str] = set()
        self._alarms: dict[tuple[str, str], float] = {}  # when each was raised last
        self.ready: Callable[[], Awaitable[object]] | None = None  # waits until the clock may be relied on

    def configure(self, wanted: Wanted, resources: Resources, down: set[str]) -> None:
        """Take over what was applied; streams that were there keep their way."""
        self._below = {str(key[1]): value["interface"] for key, value in resources.items() if key[0] == "vlan"}
        self._base = {str(key[1]): value["base_time"] for key, value in resources.items()
                      if key[0] == "taprio" and "base_time" in value}  # fmt: skip
        self._down = down
        before, self._states = self._states, {}
        for stream in wanted.streams:
            old = before.get(stream.name)
            if old is not None and old.stream == stream:
                self._states[stream.name] = before.pop(stream.name)  # with a move that is under way
                continue
            active = 0
            if old is not None and old.stream.paths:
                there = [path.interface for path in stream.paths]
                name = old.stream.paths[old.active].interface
                active = there.index(name) if name in there else 0
            self._states[stream.name] = state = _State(stream, active)
            if old is not None and stream.paths and (old.stopped or old.moving is not None):
                self._order(stream.name, self._start(state))  # its talkers have been told to stop
        for old in before.values():
            self._end(old)

    def streams(self) -> list[Record]:
        """Each stream with its way."""
        return [
            {
                "kind": "path", "stream": name, "active": state.active if state.stream.paths else None,
                "interface": state.stream.paths[state.active].interface if state.stream.paths else None,
                "paths": [path.interface for path in state.stream.paths], "moving": state.moving is not None,
                "usable": [self._usable(state, index) for index in range(len(state.stream.paths))],
                "moves": state.moves, "talkers": len(self._talkers.get(name, ())), "told": dict(state.told),
            }
            for name, state in self._states.items()
        ]  # fmt: skip

    async def close(self) -> None:
        """End what is under way."""
        await asyncio.gather(*(self._end(state) for state in self._states.values()), return_exceptions=True)

    @staticmethod
    def _end(state: _State) -> asyncio.Future[None]:
        if state.held is not None:
            state.held.cancel()
        if state.moving is not None:
            state.moving.cancel()
            return state.moving
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    # ---- who is there ----

    async def attach(self, stream: str, role: str) -> AsyncIterator[Record]:
        """Orders for one talker of a stream; a listener gets none, but learns that the agent is there."""
        queue: asyncio.Queue[Record] = asyncio.Queue(_ORDERS)
        if role == "talker":
            self._talkers.setdefault(stream, set()).add(queue)
            state = self._states.get(stream)
            if state is not None and state.active:
                queue.put_nowait(self._start(state))  # who comes back must not take the way that failed
        try:
            yield {"order": "idle"}
            while True:
                try:
                    async with asyncio.timeout(_IDLE_S):
                        order = await queue.get()
                except TimeoutError:
                    order = {"order": "idle"}
                yield order
        finally:
            if role == "talker":
                self._talkers[stream].discard(queue)
                if not self._talkers[stream]:
                    del self._talkers[stream]

    def _order(self, stream: str, order: Record) -> None:
        for queue in self._talkers.get(stream, ()):
            while queue.full():  # the last orders are those that count
                queue.get_nowait()
            queue.put_nowait(order)

    def _start(self, state: _State) -> Record:
        path = state.stream.paths[state.active]
        order: Record = {"order": "start", "interface": path.interface}
        if path.destination is not None:
            order["destination"] = path.destination
        base = self._base.get(self._below.get(path.interface, path.interface))
        if base is not None:
            order["base_time_ns"] = base
        return order

    # ---- what is told ----

    def report(self, stream: str, kind: str, facts: Record) -> None:
        """What a talker or listener of this host, or the agent of a listener's, has seen."""
        event = str(facts.get("event", "")) if kind == "sequence" else kind
        state = self._states.get(stream)
        if state is not None:
            state.told[event if event in _ALARMS or event == "resumed" else "other"] += 1
            if state.stream.tell and kind == "sequence":
                self._tell(state.stream.tell, {"stream": stream, "kind": kind, **facts})
            if event in ("silent", "resumed"):
                state.silent = event == "silent"
            if event == "resumed":
                state.resumed.set()
        alarm = _ALARMS.get(event)
        if alarm is None:
            return
        if not self._quiet(stream, alarm):
            self._raise(stream, alarm, {"event": event, **facts})
        if alarm == "silent-loss" and state is not None:
            self._leave(state)

    def link(self, record: Record) -> None:
        """An event of `links`."""
        name = record["interface"]
        if record["event"] in _DOWN:
            self._down.add(name)
        elif record["up"] and record["carrier"]:
            self._down.discard(name)
        for state in self._states.values():
            if not state.stream.paths:
                continue
            for index, path in enumerate(state.stream.paths):
                mine = name in (path.interface, self._below.get(path.interface))
                if mine and record["event"] in _DOWN and not self._quiet(state.stream.name, f"link-down {index}"):
                    self._raise(state.stream.name, "link-down", record, path.interface)
                if mine and record["event"] in _DOWN and index == state.active and state.moving is None:
                    self._move(state, "link-down", confirmed=False)
            if state.stopped and record["event"] in ("carrier", "up"):
                self._move(state, "link-up", confirmed=False)

    def _quiet(self, stream: str, alarm: str) -> bool:
        """Whether an alarm was raised just now: one is enough, however often it is told."""
        key, now = (stream, alarm), time.monotonic()
        if now - self._alarms.get(key, 0.0) < _ALARM_S:
            return True
        if len(self._alarms) > 4096:  # whoever invents names of streams
            self._alarms.clear()
        self._alarms[key] = now
        return False

    def _raise(self, stream: str, alarm: str, evidence: Record, path: str | None = None) -> None:
        state = self._states.get(stream)
        if path is None and state is not None and state.stream.paths:
            path = state.stream.paths[state.active].interface
        self._happened({
            "kind": "alarm", "ts_ns": time.time_ns(), "alarm": alarm, "stream": stream, "path": path,
            "evidence": {name: value for name, value in evidence.items() if name != "stream"},
        })  # fmt: skip

    # ---- the move ----

    def _usable(self, state: _State, index: int) -> bool:
        name = state.stream.paths[index].interface
        return name not in self._down and self._below.get(name, name) not in self._down

    def _leave(self, state: _State) -> None:
        """Take another way if the listener sees nothing on this one."""
        if state.silent and state.held is None:
            self._move(state, "silent-loss", confirmed=True)

    def _hold(self, state: _State, milliseconds: int) -> None:
        def over() -> None:
            state.held = None
            self._leave(state)

        if state.held is not None:
            state.held.cancel()
        state.held = asyncio.get_running_loop().call_later(milliseconds / 1000, over)

    def _move(self, state: _State, cause: str, *, confirmed: bool) -> None:
        if state.moving is None and len(state.stream.paths) > 1:
            state.moving = asyncio.create_task(self._moved(state, cause, confirmed=confirmed))

    async def _moved(self, state: _State, cause: str, *, confirmed: bool) -> None:
        try:
            await self._try_ways(state, cause, confirmed=confirmed)
        finally:
            state.moving = None  # at once: an interface that comes back now must be able to start a stopped stream
        if not state.stopped and not self._usable(state, state.active):  # it went down meanwhile
            self._move(state, "link-down", confirmed=False)

    async def _try_ways(self, state: _State, cause: str, *, confirmed: bool) -> None:
        begin, count = time.time_ns(), len(state.stream.paths)
        failed = state.stream.paths[state.active].interface
        self._order(state.stream.name, {"order": "stop"})
        first = state.active
        # a way that went down may be up again when the others are not; one on which nothing arrives is not tried again
        for step in range(1, count if confirmed else count + 1):
            index = (first + step) % count
            if not self._usable(state, index):
                continue
            state.active, state.stopped = index, False
            if self.ready is not None:
                await self.ready()
            state.resumed.clear()
            self._order(state.stream.name, self._start(state))
            state.moves += 1
            ordered = time.time_ns()
            back = True
            if confirmed:
                try:
                    async with asyncio.timeout(state.stream.confirm_ms / 1000):
                        await state.resumed.wait()
                except TimeoutError:
                    back = False
            self._happened({
                "kind": "failover", "ts_ns": time.time_ns(), "stream": state.stream.name, "cause": cause,
                "from": failed, "to": state.stream.paths[index].interface, "back": back if confirmed else None,
                "ordered_after_ns": ordered - begin,
                "downtime_ns": time.time_ns() - begin if confirmed and back else None,
            })  # fmt: skip
            if back:
                # a link that went down is a silence too, of which the listener tells when the stream has moved already
                self._hold(state, state.stream.hold_ms if confirmed else state.stream.confirm_ms)
                return
        if confirmed:  # no other way is better: stay, and look again later
            self._order(state.stream.name, self._start(state))
            self._hold(state, state.stream.hold_ms)
        state.stopped = not any(self._usable(state, index) for index in range(count))
        self._raise(state.stream.name, "no-path", {"cause": cause, "stopped": state.stopped})
