# SPDX-License-Identifier: Apache-2.0
"""Which faults move a stream, where to, and what its talkers are told."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from tsn_agent import faults, wanted
from tsn_agent.faults import Faults
from tsn_agent.otheragents import OtherAgents

from libqos import tomlfile
from tests.waiting import TIMEOUT_S, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    import pytest

STREAM = """
[[streams]]
name = "axis"
confirm_ms = 60_000
hold_ms = {hold}
[[streams.paths]]
interface = "eth0.10"
destination = "10.0.1.2"
[[streams.paths]]
interface = "eth1.20"
[[streams.paths]]
interface = "eth2"
"""
RESOURCES: Any = {
    ("vlan", "eth0.10"): {"interface": "eth0"}, ("vlan", "eth1.20"): {"interface": "eth1"},
    ("taprio", "eth1"): {"base_time": 7, "cycle_time": 1000}, ("taprio", "eth2"): {"foreign": "htb"},
}  # fmt: skip


class World:
    """Faults, a talker that is attached, and what happened."""

    def __init__(self, text: str = STREAM.format(hold=60_000), down: set[str] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.faults = Faults(self.events.append, lambda url, report: self.told.append((url, report)))
        self.configure(text, down)

    def configure(self, text: str, down: set[str] | None = None, ways: dict[str, str] | None = None) -> None:
        self.faults.configure(wanted.of_document(tomlfile.parse(text, "f")), RESOURCES, down or set(), ways or {})

    def link(self, name: str, event: str) -> None:
        up = event in ("up", "carrier")
        self.faults.link({"kind": "link", "event": event, "interface": name, "up": up, "carrier": up})

    def sequence(self, event: str, **facts: Any) -> None:
        self.faults.report("axis", "sequence", {"event": event, **facts})

    async def talker(self) -> Talker:
        """One that has just come, and has been told by which way."""
        made = Talker(self.faults)
        assert await made.order() == {"order": "idle"}
        assert await made.order() == {"order": "start", "interface": "eth0.10", "destination": "10.0.1.2"}
        return made

    async def until(self, kind: str, **values: Any) -> dict[str, Any]:
        """Wait for an event."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for event in self.events:
                    if event["kind"] == kind and values.items() <= event.items():
                        return event
                await asyncio.sleep(0)


class Talker:
    def __init__(self, faults: Faults) -> None:
        self._orders = faults.attach("axis", "talker")

    async def order(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            return await anext(self._orders)

    async def leave(self) -> None:
        await self._orders.aclose()  # type: ignore[attr-defined]


def runs(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: dict[str, Any] = {"tmp_path": tmp_path, "monkeypatch": monkeypatch}
        asyncio.run(test(**{name: given[name] for name in inspect.signature(test).parameters}))

    return run


START = {"order": "start", "interface": "eth1.20", "base_time_ns": 7}


@runs
async def test_a_link_that_goes_down_moves_the_stream() -> None:
    world = World()
    talker = await world.talker()
    world.link("eth0", "carrier_lost")  # the interface below the VLAN
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, START]
    alarm = await world.until("alarm", alarm="link-down", stream="axis", path="eth0.10")
    assert alarm["evidence"]["event"] == "carrier_lost"
    moved = await world.until("failover", cause="link-down", to="eth1.20", back=None)
    assert moved["from"] == "eth0.10"
    world.link("eth0.10", "carrier_lost")  # what follows from it moves nothing any more
    (state,) = world.faults.streams()
    assert (state["interface"], state["moves"], state["talkers"]) == ("eth1.20", 1, 1)


@runs
async def test_silence_moves_it_and_the_listener_has_to_see_it_again() -> None:
    world = World()
    talker = await world.talker()
    world.sequence("silent", seq=9)
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, START]
    assert not [event for event in world.events if event["kind"] == "failover"]
    world.sequence("resumed")
    moved = await world.until("failover", cause="silent-loss", to="eth1.20", back=True)
    assert moved["downtime_ns"] >= moved["ordered_after_ns"] >= 0


@runs
async def test_a_way_that_brings_nothing_back_is_left() -> None:
    world = World(STREAM.format(hold=60_000).replace("60_000", "1", 1))
    talker = await world.talker()
    world.sequence("silent")
    await world.until("failover", to="eth1.20", back=False)
    await world.until("failover", to="eth2", back=False)
    await world.until("alarm", alarm="no-path", path="eth2")
    orders = [await talker.order() for _ in range(4)]
    assert [order.get("interface") for order in orders] == [None, "eth1.20", "eth2", "eth2"]


@runs
async def test_after_a_move_it_stays_for_a_while_and_then_looks_again() -> None:
    world = World(STREAM.format(hold=50))
    talker = await world.talker()
    world.sequence("silent")
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, START]
    world.sequence("resumed")
    await world.until("failover", to="eth1.20")
    while world.faults.streams()[0]["moving"]:
        await asyncio.sleep(0)
    world.sequence("silent")
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, {"order": "start", "interface": "eth2"}]


@runs
async def test_no_way_left_the_stream_stops_until_one_comes_back() -> None:
    world = World(down={"eth1", "eth2"})
    talker = await world.talker()
    world.link("eth0", "down")
    assert await talker.order() == {"order": "stop"}
    await world.until("alarm", alarm="no-path")
    world.link("eth2", "carrier")
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, {"order": "start", "interface": "eth2"}]


@runs
async def test_a_talker_that_comes_later_is_sent_by_the_way_that_works() -> None:
    world = World()
    world.link("eth0.10", "removed")
    await world.until("failover")
    talker = Talker(world.faults)
    assert [await talker.order(), await talker.order()] == [{"order": "idle"}, START]
    await talker.leave()
    assert world.faults.streams()[0]["talkers"] == 0


@runs
async def test_another_file_keeps_the_way_that_is_taken() -> None:
    world = World()
    world.link("eth0", "down")
    await world.until("failover", to="eth1.20")
    world.configure(STREAM.format(hold=1).replace("eth2", "eth3"))
    assert world.faults.streams()[0]["interface"] == "eth1.20"
    world.configure("")
    assert world.faults.streams() == []
    world.sequence("silent")  # of a stream that nobody knows any more: an alarm, and nothing else
    await world.until("alarm", alarm="silent-loss", path=None)


@runs
async def test_missed_launch_times_are_an_alarm_and_move_nothing() -> None:
    world = World()
    for _ in range(1000):
        world.faults.report("axis", "launch-missed", {"count": 3})
    assert len(world.events) == 1  # one for all of them
    assert world.events[0]["alarm"] == "launch-missed"
    assert world.faults.streams()[0]["told"] == {"launch-missed": 1000}


@runs
async def test_names_that_somebody_invents_do_not_pile_up() -> None:
    world = World("")
    for number in range(10_000):
        world.faults.report(f"s{number}", "sequence", {"event": "lost"})
        world.faults.report("axis", "sequence", {"event": f"e{number}"})
    assert len(world.faults._alarms) <= 4097


@runs
async def test_the_listeners_agent_tells_the_talkers(tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/agent.sock", f"tcp://127.0.0.1:{free_port()}"):
        talkers, listeners = World(), World()
        listeners.configure(f'[[streams]]\nname = "axis"\ntell = "{url}"')
        listeners.faults._tell = lambda to, report: here.tell(to, report)
        async with OtherAgents(url, None, talkers.faults.report), OtherAgents("", None, lambda *_: None) as here:
            here.configure({url})
            async with asyncio.timeout(TIMEOUT_S):
                while not (state := here.state()) or not state[0]["connected"]:
                    await asyncio.sleep(0.01)
            listeners.sequence("silent", seq=5, count=3)
            alarm = await talkers.until("alarm", alarm="silent-loss", path="eth0.10")
            assert alarm["evidence"] == {"event": "silent", "seq": 5, "count": 3}
            assert here.dropped == 0


@runs
async def test_an_agent_that_comes_later_is_told_what_is_silent(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/agent.sock"
    talkers, listeners = World(), World()
    listeners.configure(f'[[streams]]\nname = "axis"\ntell = "{url}"')
    listeners.faults._tell = lambda to, report: here.tell(to, report)
    async with OtherAgents("", None, lambda *_: None) as here:
        here.configure({url})
        listeners.sequence("silent", seq=4)
        listeners.sequence("resumed", seq=5)
        listeners.sequence("silent", seq=6, count=3)
        for _ in range(2):
            async with OtherAgents(url, None, talkers.faults.report):
                alarm = await talkers.until("alarm", alarm="silent-loss")
            assert alarm["evidence"] == {"event": "silent", "seq": 6, "count": 3}
            talkers = World()


@runs
async def test_a_file_that_is_applied_again_leaves_a_move_alone() -> None:
    world = World()
    talker = await world.talker()
    world.sequence("silent")
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, START]
    world.configure(STREAM.format(hold=60_000))
    world.sequence("resumed")
    await world.until("failover", to="eth1.20", back=True)


@runs
async def test_another_file_starts_what_was_told_to_stop() -> None:
    world = World(down={"eth1", "eth2"})
    talker = await world.talker()
    world.link("eth0", "down")
    await world.until("alarm", alarm="no-path")
    world.configure(STREAM.format(hold=1), {"eth0"})
    assert [(await talker.order())["order"] for _ in range(3)] == ["stop", "stop", "start"]


@runs
async def test_who_is_watched_no_longer_goes_on() -> None:
    world = World(down={"eth1", "eth2"})
    talker = await world.talker()
    world.link("eth0", "down")
    await world.until("alarm", alarm="no-path")
    world.configure("")
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, {"order": "start"}]


@runs
async def test_a_way_that_goes_down_while_it_is_taken_is_left() -> None:
    world, ready = World(), asyncio.Event()
    world.faults.ready = ready.wait
    talker = await world.talker()
    world.link("eth0", "down")
    assert await talker.order() == {"order": "stop"}
    world.link("eth1", "down")
    ready.set()
    await world.until("failover", to="eth2")


@runs
async def test_the_controller_is_asked_first() -> None:
    world, asked = World(), []

    async def ask(fault: dict[str, Any]) -> str:
        asked.append(fault)
        return "eth2"

    world.faults.ask = ask
    talker = await world.talker()
    world.sequence("silent", seq=9)
    orders = [await talker.order(), await talker.order()]
    assert orders == [{"order": "stop"}, {"order": "start", "interface": "eth2"}]
    world.sequence("resumed")
    await world.until("failover", to="eth2", by="controller", back=True)
    usable = ["eth0.10", "eth1.20", "eth2"]
    evidence = {"event": "silent", "seq": 9}
    assert asked == [
        {"stream": "axis", "cause": "silent-loss", "path": "eth0.10", "usable": usable, "evidence": evidence}
    ]


@runs
async def test_what_the_controller_names_has_to_bring_the_stream_back() -> None:
    """Also the way that failed: the controller may have mended the network behind it."""
    world = World(STREAM.format(hold=60_000).replace("60_000", "1", 1))

    async def ask(_: dict[str, Any]) -> str:
        return "eth0.10"

    world.faults.ask = ask
    talker = await world.talker()
    world.sequence("silent")
    await world.until("failover", to="eth0.10", by="controller", back=False)
    await world.until("failover", to="eth1.20", by="agent", back=False)
    orders = [await talker.order() for _ in range(3)]
    assert [order.get("interface") for order in orders] == [None, "eth0.10", "eth1.20"]


@runs
async def test_a_controller_that_names_no_way_leaves_it_to_the_agent() -> None:
    for answer in (None, "eth9", "eth2"):
        world = World(down={"eth2"})

        async def ask(_: dict[str, Any], answer: str | None = answer) -> str | None:
            return answer

        world.faults.ask = ask
        world.link("eth0", "down")
        await world.until("failover", to="eth1.20", by="agent")


@runs
async def test_a_controller_may_give_the_stream_other_ways() -> None:
    world = World('[[streams]]\nname = "axis"\n[[streams.paths]]\ninterface = "eth0.10"\ndestination = "10.0.1.2"')

    async def ask(_: dict[str, Any]) -> str | None:
        world.configure(STREAM.format(hold=60_000))
        await asyncio.sleep(TIMEOUT_S)  # it is not waited for
        return None

    world.faults.ask = ask
    talker = await world.talker()
    world.sequence("silent")
    assert [await talker.order() for _ in range(3)] == [{"order": "stop"}, {"order": "stop"}, START]
    world.sequence("resumed")
    moved = await world.until("failover", cause="silent-loss", to="eth1.20", back=True)
    assert (moved["from"], moved["by"]) == ("eth0.10", "agent")


@runs
async def test_a_stream_with_one_way_and_a_controller_that_has_none_goes_on() -> None:
    world = World('[[streams]]\nname = "axis"\n[[streams.paths]]\ninterface = "eth0.10"\ndestination = "10.0.1.2"')

    async def ask(_: dict[str, Any]) -> None:
        return None

    world.faults.ask = ask
    talker = await world.talker()
    world.sequence("silent")
    await world.until("alarm", alarm="no-path")
    assert [(await talker.order())["order"] for _ in range(2)] == ["stop", "start"]


@runs
async def test_ways_outlive_the_agent() -> None:
    world = World()
    kept: list[dict[str, str]] = []
    world.faults.remember = kept.append
    world.link("eth0", "down")
    await world.until("failover", to="eth1.20")
    while not kept:
        await asyncio.sleep(0)
    assert kept == [{"axis": "eth1.20"}]
    again = World("")
    again.configure(STREAM.format(hold=1), {"eth0"}, kept[0])
    talker = Talker(again.faults)  # one that the agent before has told to stop, and nothing else
    assert [await talker.order(), await talker.order()] == [{"order": "idle"}, START]


@runs
async def test_a_way_that_is_down_at_the_start_is_not_taken() -> None:
    world = World(down={"eth0"})
    await world.until("failover", cause="link-down", to="eth1.20")


@runs
async def test_who_comes_while_no_way_is_usable_waits() -> None:
    world = World(down={"eth0", "eth1", "eth2"})
    await world.until("alarm", alarm="no-path")
    talker = Talker(world.faults)
    assert [await talker.order(), await talker.order()] == [{"order": "idle"}, {"order": "stop"}]
    world.link("eth1", "carrier")
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, START]


@runs
async def test_another_schedule_gives_the_stream_its_instants() -> None:
    world = World()
    talker = await world.talker()
    document = wanted.of_document(tomlfile.parse(STREAM.format(hold=60_000), "f"))
    world.faults.configure(document, {**RESOURCES, ("taprio", "eth0"): {"base_time": 9, "cycle_time": 1000}}, set())
    start = {"order": "start", "interface": "eth0.10", "destination": "10.0.1.2", "base_time_ns": 9}
    assert await talker.order() == start


@runs
async def test_it_is_said_that_the_clock_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_CLOCK_S", 0.001)
    world, ready = World(), asyncio.Event()
    world.faults.ready = ready.wait
    world.link("eth0", "down")
    await world.until("alarm", alarm="not-synchronised", stream="axis", path="eth1.20")
    ready.set()
    await world.until("failover", to="eth1.20")


@runs
async def test_a_stream_that_nobody_sends_stays_where_it_is() -> None:
    world = World(STREAM.format(hold=60_000).replace("60_000", "1", 1))
    talker = await world.talker()
    await talker.leave()
    world.sequence("silent")
    await world.until("alarm", alarm="silent-loss")
    assert not world.faults.streams()[0]["moving"]
    talker = await world.talker()  # but who comes back and is not seen either
    assert [await talker.order(), await talker.order()] == [{"order": "stop"}, START]
