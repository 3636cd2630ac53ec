# SPDX-License-Identifier: Apache-2.0
"""Who sends to whom: plans as a pure function, and what the router orders when something changes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from selened.plans import (
    DATAPATH,
    MAX_RELAYED_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    Accept,
    DatapathAccept,
    DatapathRoute,
    Dest,
    Endpoint,
    Key,
    Members,
    Route,
    Session,
    make_plan,
    receiver,
    window_bytes,
)
from selened.routes import Changes, Router
from selened.wire import MAX_ACCEPT, MAX_DESTS, NOWHERE, Address

if TYPE_CHECKING:
    from collections.abc import Callable

DP = Address("10.0.0.1", 7471)
KEY = Key(1, 2, "")
PEER_A, PEER_B = 0xA, 0xB
AT_A, AT_A2, AT_B = Address("10.0.0.2", 5000), Address("10.0.0.2", 7471), Address("10.0.0.3", 5000)


def direct(number: int, owner: int = 1000) -> Session:
    return Session(number, owner, Address("10.0.0.1", 50000 + number), 8 << 20)


def relayed(number: int, owner: int = 1000) -> Session:
    return Session(number, owner, None)


def members(
    sources: list[Session] = [],  # noqa: B006 - never changed
    sinks: list[Session] = [],  # noqa: B006
    remote_sinks: dict[int, Address] = {},  # noqa: B006
    remote_sources: dict[int, Address] = {},  # noqa: B006
) -> Members:
    """Sources have the ids 101, 102, …; sinks 201, 202, …"""
    return Members(
        {101 + at: Endpoint(101 + at, session) for at, session in enumerate(sources)},
        {201 + at: Endpoint(201 + at, session) for at, session in enumerate(sinks)},
        {host: Dest(host, address, 1000) for host, address in remote_sinks.items()},
        dict(remote_sources),
    )


WINDOWS = {DATAPATH: 70000, 1: 11000, 2: 12000}


# ---- Plans ----


@pytest.mark.parametrize("kinds", list(itertools.product([direct, relayed], repeat=2)))
def test_sessions_of_one_user_meet_through_edges_only(kinds: tuple[object, object]) -> None:
    one, two = kinds[0](1), kinds[1](2)  # type: ignore[operator]
    plan = make_plan(members([one, two], [one, two]), DP, WINDOWS)
    assert plan.edges == {(101, 201), (101, 202), (102, 201), (102, 202)}
    assert set(plan.routes.values()) == {Route()}
    assert not plan.datapath_routes
    assert not plan.datapath_accepts
    assert set(plan.accepts.values()) == {()}


@pytest.mark.parametrize("kinds", list(itertools.product([direct, relayed], repeat=2)))
def test_sinks_of_another_user_get_copies_of_the_datapath_process(kinds: tuple[object, object]) -> None:
    source, sink = kinds[0](1, 1000), kinds[1](2, 1001)  # type: ignore[operator]
    plan = make_plan(members([source], [sink]), DP, WINDOWS)
    assert not plan.edges
    assert plan.routes == {101: Route((), True)}
    assert plan.datapath_routes == {101: DatapathRoute(1, (), (2,))}
    assert plan.datapath_accepts == {101: DatapathAccept(NOWHERE, (2,))}
    assert plan.accepts == {201: (Accept(101, NOWHERE, True, WINDOWS[DATAPATH]),)}


def test_a_direct_source_sends_to_other_hosts_by_itself() -> None:
    plan = make_plan(members([direct(1)], remote_sinks={PEER_B: AT_B, PEER_A: AT_A}), DP, WINDOWS)
    assert plan.routes == {101: Route((Dest(PEER_A, AT_A, 1000), Dest(PEER_B, AT_B, 1000)), False)}
    assert not plan.datapath_routes
    assert plan.sources == {101: direct(1).address}


def test_a_relayed_source_sends_to_other_hosts_through_the_datapath_process() -> None:
    plan = make_plan(members([relayed(1)], remote_sinks={PEER_A: AT_A}), DP, WINDOWS)
    assert plan.routes == {101: Route((), True)}
    assert plan.datapath_routes == {101: DatapathRoute(1, (Dest(PEER_A, AT_A, 1000),), ())}
    assert plan.sources == {101: DP}


def test_a_direct_source_with_strangers_here_goes_both_ways() -> None:
    plan = make_plan(members([direct(1, 1000)], [direct(2, 1001)], {PEER_A: AT_A}), DP, WINDOWS)
    assert plan.routes == {101: Route((Dest(PEER_A, AT_A, 1000),), True)}
    assert plan.datapath_routes == {101: DatapathRoute(1, (), (2,))}, "the datapath process has the local ones only"


def test_a_relayed_source_with_strangers_here_goes_one_way() -> None:
    plan = make_plan(members([relayed(1, 1000)], [relayed(2, 1001), relayed(3, 1000)], {PEER_A: AT_A}), DP, WINDOWS)
    assert plan.edges == {(101, 202)}
    assert plan.datapath_routes == {101: DatapathRoute(1, (Dest(PEER_A, AT_A, 1000),), (2,))}


SOURCE_A = PEER_A << 32 | 1


@pytest.mark.parametrize(
    ("sinks", "arrives"),
    [
        ([], None),
        ([direct(1)], 1),
        ([direct(1), direct(1)], 1),
        ([relayed(1)], DATAPATH),
        ([direct(1), direct(2)], DATAPATH),
        ([direct(1), relayed(2)], DATAPATH),
        ([direct(1, 1000), direct(2, 1001)], DATAPATH),
    ],
)
def test_one_address_is_announced_for_a_channel(sinks: list[Session], arrives: int | None) -> None:
    everybody = members(sinks=sinks, remote_sources={SOURCE_A: AT_A})
    plan = make_plan(everybody, DP, WINDOWS)
    assert receiver(everybody) == arrives
    if arrives is None:
        assert plan.listen is None
        assert not plan.accepts
        return
    through_datapath = arrives == DATAPATH
    assert plan.listen == (DP if through_datapath else direct(1).address, WINDOWS[arrives])
    accept = Accept(SOURCE_A, AT_A, through_datapath, WINDOWS[arrives])
    assert plan.accepts == {201 + at: (accept,) for at in range(len(sinks))}
    listeners = tuple(sorted({session.id for session in sinks}))
    assert plan.datapath_accepts == ({SOURCE_A: DatapathAccept(AT_A, listeners)} if through_datapath else {})


def test_a_channel_without_sinks_or_sources_needs_nothing() -> None:
    plan = make_plan(members(remote_sinks={PEER_A: AT_A}, remote_sources={SOURCE_A: AT_A}), DP, WINDOWS)
    assert not plan.datapath_accepts
    assert not plan.routes
    assert plan.listen is None


def test_too_many_are_left_out_and_said() -> None:
    hosts = dict.fromkeys(range(1, MAX_DESTS + 2), AT_A)
    plan = make_plan(members([direct(1)], remote_sinks=hosts), DP, WINDOWS)
    assert len(plan.routes[101].dests) == MAX_DESTS
    assert f"{MAX_DESTS + 1} hosts" in plan.problems[0]
    sources = {PEER_A << 32 | number: AT_A for number in range(MAX_ACCEPT + 1)}
    plan = make_plan(members(sinks=[direct(1)], remote_sources=sources), DP, WINDOWS)
    assert len(plan.accepts[201]) == MAX_ACCEPT
    assert f"{MAX_ACCEPT + 1} sources" in plan.problems[0]
    strangers = [relayed(number, 1001) for number in range(2, MAX_DESTS + 3)]
    plan = make_plan(members([direct(1, 1000)], strangers), DP, WINDOWS)
    assert len(plan.datapath_routes[101].sessions) == MAX_DESTS
    assert plan.problems


# ---- Windows ----


def test_windows_share_the_receive_buffer() -> None:
    assert window_bytes(8 << 20, 0) == window_bytes(8 << 20, 1) == MAX_WINDOW_BYTES
    assert window_bytes(8 << 20, 16) == 256 << 10
    assert window_bytes(8 << 20, 9) == window_bytes(8 << 20, 16), "they change at powers of two only"
    assert window_bytes(8 << 20, 1 << 20) == MIN_WINDOW_BYTES
    assert window_bytes(8 << 20, 1, limit=64 << 10) == 64 << 10
    for sources in range(1, 300):
        assert window_bytes(8 << 20, sources) * sources <= max(4 << 20, MIN_WINDOW_BYTES * sources)


# ---- The router ----


def router() -> Router:
    return Router(DP, 8 << 20)


def source(number: int, session: Session) -> Endpoint:
    return Endpoint(number, session)


def nothing(changes: Changes) -> bool:
    return not changes


def test_a_source_and_a_sink_get_an_edge_and_lose_it() -> None:
    state = router()
    state.add_source(KEY, source(101, direct(1)))
    first = state.changes()
    assert first.sources == {101: (KEY, direct(1).address)}
    assert not first.edges
    assert not first.routes, "an empty route is what a source begins with"
    state.add_sink(KEY, source(201, direct(2)))
    second = state.changes()
    assert second.edges == [(101, 201)]
    assert second.listens == {KEY: (direct(2).address, MAX_WINDOW_BYTES)}
    assert nothing(state.changes())
    state.remove(201)
    third = state.changes()
    assert third.ended_edges == [(101, 201)]
    assert third.listens == {KEY: None}
    state.remove(101)
    fourth = state.changes()
    assert fourth.sources == {101: (KEY, None)}
    assert not state.members
    assert not list(state.resident())


def test_streams_channels_and_names_keep_apart() -> None:
    state = router()
    for number, key in enumerate([KEY, Key(2, 2, ""), Key(1, 3, "")]):
        state.add_source(key, source(101 + number, direct(1)))
        state.add_sink(key, source(201 + number, direct(2)))
    assert state.changes().edges == [(101, 201), (103, 203), (102, 202)]


def test_two_names_on_a_channel_are_kept_apart_and_counted() -> None:
    state = router()
    assert state.add_source(Key(1, 2, "left"), source(101, direct(1))) == ""
    warning = state.add_sink(Key(1, 2, "right"), source(201, direct(2)))
    assert "'left'" in warning
    assert "'right'" in warning
    assert state.collisions == 1
    assert not state.changes().edges
    state.remove(101)
    state.changes()
    assert state.add_source(Key(1, 2, "right"), source(102, direct(1))) == ""
    assert state.collisions == 1


def test_a_collision_with_a_name_on_another_host_is_seen() -> None:
    state = router()
    state.add_sink(Key(1, 2, "left"), source(201, direct(2)))
    assert state.set_remote_source(Key(1, 2, "right"), SOURCE_A, AT_A)
    assert not state.changes().accepts


def test_epochs_move_when_a_destination_gets_another_address() -> None:
    state = router()
    state.add_source(KEY, source(101, direct(1)))
    state.set_remote_sink(KEY, PEER_A, (AT_A, 1000))
    assert state.changes().routes == {101: Route((Dest(PEER_A, AT_A, 1000),))}
    assert state.epochs[101] == 1
    state.set_remote_sink(KEY, PEER_B, (AT_B, 1000))
    state.changes()
    assert state.epochs[101] == 1, "an addition"
    state.set_remote_sink(KEY, PEER_B, (AT_B, 2000))
    assert state.changes().routes
    assert state.epochs[101] == 1, "a window"
    state.set_remote_sink(KEY, PEER_A, (AT_A2, 1000))
    state.changes()
    assert state.epochs[101] == 2, "another address"
    state.set_remote_sink(KEY, PEER_A, None)
    assert state.changes().routes == {101: Route((Dest(PEER_B, AT_B, 2000),))}
    assert state.epochs[101] == 2, "a removal"
    state.set_remote_sink(KEY, PEER_A, (AT_A, 1000))
    state.changes()
    assert state.epochs[101] == 2, "an addition again"


def test_epochs_of_relayed_sources_move_as_well() -> None:
    state = router()
    state.add_source(KEY, source(101, relayed(1)))
    state.set_remote_sink(KEY, PEER_A, (AT_A, 1000))
    changes = state.changes()
    assert changes.datapath_routes == {101: (KEY, DatapathRoute(1, (Dest(PEER_A, AT_A, 1000),), ()))}
    assert changes.routes == {101: Route((), True)}
    state.set_remote_sink(KEY, PEER_A, (AT_A2, 1000))
    changes = state.changes()
    assert not changes.routes, "its client is told nothing new"
    assert state.epochs[101] == 2
    state.set_remote_sink(KEY, PEER_A, None)
    changes = state.changes()
    assert changes.ended_routes == [(101, 1)]
    assert changes.routes == {101: Route()}


def test_a_second_session_moves_a_channel_to_the_datapath_process_and_back() -> None:
    state = router()
    state.set_remote_source(KEY, SOURCE_A, AT_A)
    state.add_sink(KEY, source(201, direct(1)))
    one = state.changes()
    assert one.accepts == {201: (Accept(SOURCE_A, AT_A, False, MAX_WINDOW_BYTES),)}
    assert not one.datapath_accepts
    state.add_sink(KEY, source(202, direct(2)))
    two = state.changes()
    assert two.datapath_accepts == {SOURCE_A: DatapathAccept(AT_A, (1, 2))}
    assert two.accepts == dict.fromkeys((201, 202), (Accept(SOURCE_A, AT_A, True, MAX_RELAYED_WINDOW_BYTES),))
    assert two.listens == {KEY: (DP, MAX_RELAYED_WINDOW_BYTES)}
    state.remove(201)
    three = state.changes()
    assert three.listens == {KEY: (direct(2).address, MAX_WINDOW_BYTES)}
    assert three.ended_accepts == [SOURCE_A]
    assert three.accepts == {202: (Accept(SOURCE_A, AT_A, False, MAX_WINDOW_BYTES),)}


def test_the_end_of_a_session_ends_everything_it_had() -> None:
    state = router()
    one, two = direct(1, 1000), direct(2, 1001)
    state.add_source(KEY, source(101, one))
    state.add_sink(KEY, source(201, one))
    state.add_sink(KEY, source(202, two))
    state.changes()
    state.remove_session(1)
    changes = state.changes()
    assert changes.ended_edges == [(101, 201)]
    assert changes.ended_routes == [(101, 1)]
    assert changes.ended_accepts == [101]
    assert changes.accepts == {202: ()}
    assert changes.sources == {101: (KEY, None)}
    assert list(state.endpoints) == [202]


def test_windows_follow_the_number_of_remote_sources_of_a_socket() -> None:
    state = router()
    session = direct(1)
    keys = [Key(1, number, "") for number in range(32)]
    for number, key in enumerate(keys):
        state.add_sink(key, source(201 + number, session))
    assert {listen[1] for listen in state.changes().listens.values() if listen} == {MAX_WINDOW_BYTES}
    for number, key in enumerate(keys):
        state.set_remote_source(key, PEER_A << 32 | number, AT_A)
    changes = state.changes()
    assert {listen[1] for listen in changes.listens.values() if listen} == {128 << 10}
    assert {entry.window for entries in changes.accepts.values() for entry in entries} == {128 << 10}
    for number, key in enumerate(keys[1:], 1):
        state.set_remote_source(key, PEER_A << 32 | number, None)
    assert {listen[1] for listen in state.changes().listens.values() if listen} == {MAX_WINDOW_BYTES}
    assert nothing(state.changes())


def test_what_is_relayed_fits_into_a_receive_ring() -> None:
    """It waits there, however many sources send: 2048 entries for datagrams of 848 bytes of credit at least."""
    state = router()
    state.add_sink(KEY, source(201, relayed(1)))
    for number in range(40):
        state.set_remote_source(KEY, PEER_A << 32 | number, AT_A)
        state.changes()
        assert state.window(DATAPATH) * (number + 1) <= 2048 * 848, number


def test_in_the_grace_only_edges_are_made() -> None:
    state = router()
    state.add_source(KEY, source(101, relayed(1)), epoch=7)
    state.set_remote_sink(KEY, PEER_A, (AT_A, 1000))
    assert nothing(state.changes(only_edges=True))
    state.add_sink(KEY, source(201, relayed(2)), resumed=True)
    held = state.changes(only_edges=True)
    assert held.edges == [(101, 201)]
    assert not held.routes
    assert not held.listens
    assert nothing(state.changes(only_edges=True))
    full = state.changes()
    assert not full.edges
    assert full.datapath_routes[101][1].dests[0].address == AT_A
    assert full.routes == {101: Route((), True)}
    assert full.accepts == {201: ()}, "the client may hold what the earlier daemon told it"
    assert state.epochs[101] == 8, "nobody knows whether the way has changed"
    assert nothing(state.changes())


def test_a_resumed_source_without_destinations_is_told_so() -> None:
    state = router()
    state.add_source(KEY, source(101, direct(1)), epoch=1)
    changes = state.changes()
    assert changes.routes == {101: Route()}
    assert changes.ended_routes == [(101, 1)]


def test_every_change_leads_to_the_plan_of_the_state() -> None:
    """Whatever the order of arrival, what is in force at the end is what the state asks for."""
    session = [direct(1, 1000), relayed(2, 1000), direct(3, 1001)]
    steps: list[Callable[[Router], object]] = [
        lambda state: state.add_source(KEY, source(101, session[0])),
        lambda state: state.add_source(KEY, source(102, session[2])),
        lambda state: state.add_sink(KEY, source(201, session[1])),
        lambda state: state.add_sink(KEY, source(202, session[2])),
        lambda state: state.set_remote_sink(KEY, PEER_A, (AT_A, 1000)),
        lambda state: state.set_remote_source(KEY, SOURCE_A, AT_A),
    ]
    plans = []
    for order in itertools.permutations(steps):
        state = router()
        for step in order:
            step(state)
            state.changes()
        plans.append(state.plan(KEY))
    assert all(plan == plans[0] for plan in plans)
    assert plans[0].edges == {(101, 201), (102, 202)}
