# SPDX-License-Identifier: Apache-2.0
"""Finds that a stream has failed, says so with the evidence, and moves it to a way that works (thesis 4.2.2).

Three things tell of faults: the kernel of an interface that goes down (`links`), the talker of launch times that were
missed or invalid, and the listener of numbers that did not come, which its own agent hands on to the talker's.

A move: the talkers of the stream are told to stop, the controller is asked by which way to go on, and they are told to
start again, in the cycles of the schedule there: by the way that the controller names, else by the next whose interface
is up. Where the listener has told of the loss it has to see the stream again within `confirm_ms`, or the next way is
taken; each once. After that the stream stays for `hold_ms`, whatever the listener tells, so that a host which is too
slow is not taken for two broken ways. If another file is applied meanwhile the move goes on among its ways.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from tsn_agent.wanted import Resources, Stream, Wanted

Record = dict[str, Any]

_IDLE_S: Final = 5.0  # between two orders; those who wait give up after ten seconds
_ORDERS: Final = 64  # that may wait for one talker
_ALARM_S: Final = 1.0  # of one stream and name: so often at most; `told` counts all
_CLOCK_S: Final = 1.0  # without a synchronised clock, before that is said
_DOWN: Final = ("carrier_lost", "down", "removed")
# What a listener or talker tells, and the alarm that is raised for it. Only the first of them moves a stream.
_ALARMS: Final = {
    "silent": "silent-loss", "lost": "loss", "late": "late", "duplicated": "duplicates", "reordered": "reordering",
    "launch-missed": "launch-missed", "launch-invalid": "launch-invalid", "send-failed": "send-failed",
}  # fmt: skip


@dataclass(frozen=True)
class _Fault:
    """Why a stream leaves its way, and since when."""

    cause: str
    path: str  # the interface that it leaves
    confirmed: bool  # the listener has told of it, and has to see the stream again
    evidence: Record
    begin_ns: int = field(default_factory=time.time_ns)


@dataclass
class _State:
    """Of one stream: which way it takes."""

    stream: Stream
    active: int = 0
    fault: _Fault | None = None  # while it moves
    moving: asyncio.Task[None] | None = None
    stopped: bool = False  # no way was usable: until an interface comes back
    silent: bool = False  # the listener sees nothing, as far as it has told
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.TimerHandle | None = None
    moves: int = 0
    told: Counter[str] = field(default_factory=Counter)

    @property
    def interface(self) -> str:
        return self.stream.paths[self.active].interface


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
        self.ask: Callable[[Record], Awaitable[str | None]] | None = None  # the controller, for an interface
        self.remember: Callable[[dict[str, str]], None] | None = None  # `ways`, whenever one has changed

    def configure(self, wanted: Wanted, resources: Resources, down: set[str], ways: Mapping[str, str] = {}) -> None:
        """Take over what was applied; streams that were there keep their way, and the others take that of `ways`."""
        before = self._states
        orders = {name: self._start(state) for name, state in before.items() if state.stream.paths}
        self._below = {str(key[1]): value["interface"] for key, value in resources.items() if key[0] == "vlan"}
        self._base = {str(key[1]): value["base_time"] for key, value in resources.items()
                      if key[0] == "taprio" and "base_time" in value}  # fmt: skip
        self._down = down
        self._states = {stream.name: self._state(stream, before.get(stream.name), ways) for stream in wanted.streams}
        for name, old in before.items():
            new = self._states.get(name)
            if (old.fault is not None or old.stopped) and (new is None or not new.stream.paths):
                self._order(name, {"order": "start"})  # nobody else will tell its talkers to go on
            if new is not old:
                self._end(old)
        for name, state in self._states.items():
            if not state.stream.paths or state.moving is not None:
                continue
            if not state.stopped and not self._usable(state, state.active):
                self._move(state, self._fault(state, "link-down", {}))
            elif not state.stopped and self._start(state) != orders.get(name):
                self._order(name, self._start(state))

    def _state(self, stream: Stream, old: _State | None, ways: Mapping[str, str]) -> _State:
        """A stream of what is applied now; `old`: as it was before."""
        if old is not None and old.stream == stream:
            return old  # with a move that is under way
        state = _State(stream)
        there = [path.interface for path in stream.paths]
        way = old.interface if old is not None and old.stream.paths else ways.get(stream.name)
        if way in there:
            state.active = there.index(way)
        if old is not None:
            state.moves, state.told, state.silent = old.moves, old.told, old.silent
            if there and (old.fault is not None or old.stopped):  # its talkers have been told to stop
                self._move(state, old.fault or self._fault(old, "link-up", {}), asked=True)
            elif state.silent:
                self._hold(state, stream.confirm_ms)
        return state

    def ways(self) -> dict[str, str]:
        """The interface of each stream that does not take its first way."""
        return {name: state.interface for name, state in self._states.items() if state.active}

    def streams(self) -> list[Record]:
        """Each stream with its way."""
        return [
            {
                "kind": "path", "stream": name, "active": state.active if state.stream.paths else None,
                "interface": state.interface if state.stream.paths else None,
                "paths": [path.interface for path in state.stream.paths],
                "moving": state.moving is not None, "stopped": state.stopped,
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
            if state is not None and state.stream.paths and state.moving is None:
                # who comes back may be on the way that failed, or still wait for an agent that was killed
                queue.put_nowait({"order": "stop"} if state.stopped else self._start(state))
                if state.silent and state.held is None:  # nobody sent it
                    self._hold(state, state.stream.confirm_ms)
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
            self._leave(state, facts)

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
                    self._move(state, self._fault(state, "link-down", record))
            if state.stopped and record["event"] in ("carrier", "up"):
                self._move(state, self._fault(state, "link-up", record))

    def _quiet(self, stream: str, alarm: str) -> bool:
        """Whether an alarm was raised just now: one is enough, however often it is told."""
        key, now = (stream, alarm), time.monotonic()
        if now - self._alarms.get(key, -_ALARM_S) < _ALARM_S:
            return True
        if len(self._alarms) > 4096:  # whoever invents names of streams
            self._alarms.clear()
        self._alarms[key] = now
        return False

    def _raise(self, stream: str, alarm: str, evidence: Record, path: str | None = None) -> None:
        state = self._states.get(stream)
        if path is None and state is not None and state.stream.paths:
            path = state.interface
        self._happened({
            "kind": "alarm", "ts_ns": time.time_ns(), "alarm": alarm, "stream": stream, "path": path,
            "evidence": {name: value for name, value in evidence.items() if name != "stream"},
        })  # fmt: skip

    # ---- the move ----

    def _usable(self, state: _State, index: int) -> bool:
        name = state.stream.paths[index].interface
        return name not in self._down and self._below.get(name, name) not in self._down

    def _leave(self, state: _State, evidence: Record) -> None:
        """Take another way if the listener sees nothing on this one, of a stream that somebody sends."""
        if state.silent and state.held is None and state.stream.paths and state.stream.name in self._talkers:
            self._move(state, self._fault(state, "silent-loss", evidence, confirmed=True))

    def _hold(self, state: _State, milliseconds: int) -> None:
        def over() -> None:
            state.held = None
            self._leave(state, {"event": "silent"})

        if state.held is not None:
            state.held.cancel()
        state.held = asyncio.get_running_loop().call_later(milliseconds / 1000, over)

    @staticmethod
    def _fault(state: _State, cause: str, evidence: Record, *, confirmed: bool = False) -> _Fault:
        return _Fault(cause, state.interface, confirmed, {key: evidence[key] for key in evidence if key != "stream"})

    def _move(self, state: _State, fault: _Fault, *, asked: bool = False) -> None:
        if state.moving is None and (len(state.stream.paths) > 1 or self.ask is not None or asked):
            state.fault = fault
            state.moving = asyncio.create_task(self._moved(state, fault, asked=asked))

    async def _moved(self, state: _State, fault: _Fault, *, asked: bool) -> None:
        try:
            self._order(state.stream.name, {"order": "stop"})
            chosen = None if asked or self.ask is None else await self._ask(state, fault)
            await self._try_ways(state, fault, chosen)
        finally:
            # at once: an interface that comes back now must be able to start a stopped stream
            state.moving = state.fault = None
        if self.remember is not None:
            self.remember(self.ways())
        if not state.stopped and not self._usable(state, state.active):  # it went down meanwhile
            self._move(state, self._fault(state, "link-down", {}))

    async def _ask(self, state: _State, fault: _Fault) -> str | None:
        """The way that the controller names. Who applies another file instead ends this move."""
        assert self.ask is not None
        paths = [path.interface for path in state.stream.paths]
        usable = [name for index, name in enumerate(paths) if self._usable(state, index)]
        chosen = await self.ask({
            "stream": state.stream.name, "cause": fault.cause, "path": fault.path, "usable": usable,
            "evidence": fault.evidence,
        })  # fmt: skip
        return chosen if chosen in paths else None

    def _order_of_ways(self, state: _State, fault: _Fault, chosen: str | None) -> list[int]:
        """What the controller has chosen, then the next ones. The way that is left comes last, since it may be up again
        when the others are not; one on which nothing arrived is not tried again."""
        names = [path.interface for path in state.stream.paths]
        ways = [(state.active + step) % len(names) for step in range(len(names))]
        if fault.confirmed:
            ways = [way for way in ways if names[way] != fault.path or names[way] == chosen]
        return sorted(ways, key=lambda way: (names[way] != chosen, names[way] == fault.path))

    async def _try_ways(self, state: _State, fault: _Fault, chosen: str | None) -> None:
        for index in self._order_of_ways(state, fault, chosen):
            if not self._usable(state, index):
                continue
            state.active, state.stopped = index, False
            await self._clock(state)
            state.resumed.clear()
            self._order(state.stream.name, self._start(state))
            state.moves += 1
            ordered = time.time_ns()
            back = True
            if fault.confirmed:
                try:
                    async with asyncio.timeout(state.stream.confirm_ms / 1000):
                        await state.resumed.wait()
                except TimeoutError:
                    back = False
            self._happened({
                "kind": "failover", "ts_ns": time.time_ns(), "stream": state.stream.name, "cause": fault.cause,
                "from": fault.path, "to": state.interface, "by": "agent" if chosen != state.interface else "controller",
                "back": back if fault.confirmed else None, "ordered_after_ns": ordered - fault.begin_ns,
                "downtime_ns": time.time_ns() - fault.begin_ns if fault.confirmed and back else None,
            })  # fmt: skip
            if back:
                # a link that went down is a silence too, of which the listener tells when the stream has moved already
                self._hold(state, state.stream.hold_ms if fault.confirmed else state.stream.confirm_ms)
                return
        if fault.confirmed:  # no other way is better: stay, and look again later
            self._order(state.stream.name, self._start(state))
            self._hold(state, state.stream.hold_ms)
        state.stopped = not any(self._usable(state, index) for index in range(len(state.stream.paths)))
        self._raise(state.stream.name, "no-path", {"cause": fault.cause, "stopped": state.stopped})

    async def _clock(self, state: _State) -> None:
        """Wait until the clock may be relied on, and say if that takes long."""
        if self.ready is None:
            return
        try:
            async with asyncio.timeout(_CLOCK_S):
                await self.ready()
        except TimeoutError:
            self._raise(state.stream.name, "not-synchronised", {"waited_s": _CLOCK_S})
            await self.ready()
