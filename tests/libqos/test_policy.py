# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos import policy
from libqos.policy import (
    CLASSES,
    Acceleration,
    Delivery,
    PolicyError,
    QosClass,
    Resources,
    Scheduler,
    TimeSensitivity,
    duration_ns,
    named,
    parse,
)


def test_marks_follow_the_traffic_class() -> None:
    """802.1Q table 8-5: background below best effort; DSCP's upper bits are the PCP (RFC 2474 class selectors)."""
    assert [named(f"tc{n}").pcp for n in range(8)] == [1, 0, 2, 3, 4, 5, 6, 7]
    for number in range(8):
        item = named(f"tc{number}")
        assert item.dscp >> 3 == item.pcp == item.so_priority
        assert policy.CLASS_OF_PCP[item.pcp] == number
        assert item.time == TimeSensitivity(number)


def test_selene_policies() -> None:
    seen = {(item.acceleration, item.resources) for item in map(named, ("slow", "slow-any", "fast", "fast-low"))}
    assert seen == {(acceleration, resources) for acceleration in Acceleration for resources in Resources}
    assert policy.DEFAULT is named("slow")


def test_tempos_levels() -> None:
    strict, best = named("SQ"), named("BQ")
    assert (strict.scheduler, strict.priority) == (Scheduler.FIFO, 80)
    assert (best.scheduler, best.priority) == (Scheduler.OTHER, 0)
    between = [named(f"Q{level}") for level in range(10, 71, 10)]
    assert [item.priority for item in between] == list(range(10, 71, 10))
    assert all(best.traffic_class < item.traffic_class < strict.traffic_class for item in between)


def test_gateway_semantics() -> None:
    assert named("data").delivery is Delivery.AT_LEAST_ONCE
    assert named("monitoring").delivery is named("control").delivery is Delivery.EXACTLY_ONCE
    assert named("data").traffic_class < named("monitoring").traffic_class < named("control").traffic_class


def test_no_class_needs_a_privileged_so_priority_but_tc7() -> None:
    assert [item.name for item in CLASSES.values() if item.so_priority > 6] == ["tc7"]


def test_name_with_changes() -> None:
    item = parse(" control , deadline = 1.5ms, Priority=80".replace("Priority", "priority") + ", scheduler=FIFO")
    assert (item.name, item.deadline_ns, item.priority, item.delivery) == ("control", 1_500_000, 80, "exactly-once")


def test_traffic_class_brings_its_marks_unless_given() -> None:
    assert (parse("traffic_class=5").pcp, parse("traffic-class=5").dscp) == (5, 46)
    assert (parse("traffic_class=5,dscp=AF41").pcp, parse("traffic_class=5,dscp=AF41").dscp) == (5, 34)
    assert (parse("pcp=1").traffic_class, parse("pcp=6").traffic_class) == (0, 6)
    assert parse("dscp=cs6").traffic_class == 1


def test_time_sensitivity() -> None:
    assert parse("time=tc6,period=1ms,offset=200us").time == TimeSensitivity(6, 1_000_000, 200_000)
    assert parse("time=6").traffic_class == 6
    assert parse("SQ,period=2ms").time == TimeSensitivity(5, 2_000_000)
    assert parse("tc3,traffic_class=4").time == TimeSensitivity(4)
    assert parse("tc3,time=none").time is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found ''.* accepted a name .*slow.*SQ.*tc7"),
        ("contrl", "did you mean control"),
        ("control,fast", "found 'fast' after the first comma, accepted key=value"),
        ("dead_line=1", r"dead_line: unknown key \(did you mean deadline\?\)"),
        ("pcp=8", "pcp: found 8, accepted 0 to 7"),
        ("pcp=five", "pcp: found 'five', accepted 0 to 7"),
        ("pcp=-1", "pcp: found '-1'"),
        ("traffic_class=8", "traffic_class: found 8, accepted 0 to 7"),
        ("time=9", "traffic_class: found 9"),
        ("dscp=AF5", "dscp: found 'AF5', accepted 0 to 63, or a name such as EF"),
        ("dscp=64", "dscp: found 64"),
        ("so_priority=16", "so_priority: found 16"),
        ("delivery=maybe", r"delivery: found 'maybe', accepted best-effort \| reliable \| at-most-once"),
        ("scheduler=fifo", "priority: found 0, accepted 1 to 99 with scheduler=fifo"),
        ("priority=5", "priority: found 5, accepted 0 with scheduler=other"),
        ("deadline=0", "deadline: found 0 ns"),
        ("deadline=soon", "deadline: found 'soon', accepted a time such as 250us"),
        ("period=1ms,offset=1ms", "offset: found 1000000 ns, accepted less than the period"),
        ("offset=1", "offset: found 1 ns"),
        ("time=none,period=1ms", "time: found none together with period"),
        ("time=3,traffic_class=4", r"time: found class 3, accepted that of traffic_class \(4\)"),
        ("pcp=1,pcp=1", "pcp: found twice"),
        ("slow,", "found '' after the first comma"),
        ("period=9999999999s", "period: found"),
    ],
)
def test_error_says_what_is_accepted(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_class_or_a_policy_error(text: str) -> None:
    """Rubbish: PolicyError, never another exception."""
    with contextlib.suppress(PolicyError):
        parse(text)


@st.composite
def classes(draw: st.DrawFn) -> QosClass:
    scheduler = draw(st.sampled_from(Scheduler))
    traffic_class = draw(st.integers(0, 7))
    period = draw(st.integers(0, 10**12))
    return QosClass(
        name=draw(st.sampled_from([item.name for item in CLASSES.values()])),
        traffic_class=traffic_class,
        pcp=draw(st.integers(0, 7)),
        dscp=draw(st.integers(0, 63)),
        so_priority=draw(st.integers(0, 15)),
        scheduler=scheduler,
        priority=0 if scheduler is Scheduler.OTHER else draw(st.integers(1, 99)),
        delivery=draw(st.sampled_from(Delivery)),
        deadline_ns=draw(st.none() | st.integers(1, 2**62)),
        acceleration=draw(st.sampled_from(Acceleration)),
        resources=draw(st.sampled_from(Resources)),
        time=draw(
            st.none()
            | st.builds(
                TimeSensitivity,
                st.just(traffic_class),
                st.just(period),
                st.integers(0, max(0, period - 1)),
            )
        ),
    )


@given(classes())
def test_text_is_read_back(item: QosClass) -> None:
    assert parse(item.to_text()) == item


@pytest.mark.parametrize("name", [item.name for item in CLASSES.values()])
def test_text_of_a_named_class_is_its_name(name: str) -> None:
    assert named(name.upper()).to_text() == name
    assert parse(name) is named(name)


def test_record_is_json() -> None:
    record = json.loads(json.dumps(parse("tc6,period=1ms").as_record()))
    assert record["time"] == {"traffic_class": 6, "period_ns": 1_000_000, "offset_ns": 0}
    assert record["scheduler"] == "other"
    assert record["deadline_ns"] is None


def test_priority_99_is_accepted_with_a_warning() -> None:
    assert named("SQ").warnings == ()
    (warning,) = parse("SQ,priority=99").warnings
    assert "starves softirq" in warning


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("250us", 250_000), ("250µs", 250_000), ("1.5 ms", 1_500_000), ("2s", 2 * 10**9), ("0.001us", 1)],
)
def test_duration(text: str, value: int) -> None:
    assert duration_ns(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1.5ns", "1m", "1e3", "ms", "1 2", "٣ms"])
def test_duration_refuses(text: str) -> None:
    with pytest.raises(PolicyError, match="accepted"):
        duration_ns(text)
