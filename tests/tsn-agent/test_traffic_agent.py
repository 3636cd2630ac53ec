# SPDX-License-Identifier: Apache-2.0
"""Talker and listener with an agent that orders, goes away, and comes back."""

from __future__ import annotations

import signal
import socket
from typing import Any

from tests.waiting import wait_until


def test_the_agent_stops_and_starts_a_stream(traffic: Any, agent: Any) -> None:
    agent.start()
    listener = traffic.listen("--samples")
    talker = traffic.talk("--agent", agent.path, "--interval", "20ms")
    listener.wait_for("latency")
    assert agent.attached == [{"stream": "stream", "role": "talker"}]
    agent.order(order="stop")
    listener.wait_for("sequence", event="silent")
    talker.wait_for("talker")
    stopped = talker.of("talker")[-1]["sent"]
    agent.order(order="start", base_time_ns=123, unknown=1)
    wait_until(lambda: talker.of("talker")[-1]["sent"] > stopped + 50, "packets after the start")
    assert talker.end(signal.SIGTERM) == 0
    last = talker.final()
    numbers = last["sent"] + last["skipped"]
    wait_until(lambda: listener.of("listener")[-1]["newest_seq"] == numbers - 1, "the last packet")
    assert listener.end(signal.SIGTERM) == 0
    # the numbers went on, the instants are those of the new base time
    assert listener.final()["restarted"] == 0
    assert listener.of("latency")[-1]["launch_ns"] % 1_000_000 == 123


def test_an_order_to_go_on_as_it_does_changes_nothing(traffic: Any, agent: Any) -> None:
    agent.start()
    listener = traffic.listen("--samples")
    talker = traffic.talk("--agent", agent.path)
    listener.wait_for("latency")
    for base_time in (0, 5_000_000, 7_000_000):  # of the same instants
        agent.order(order="start", base_time_ns=base_time)
    agent.order(order="start", base_time_ns=1)
    wait_until(lambda: listener.of("latency")[-1]["launch_ns"] % 1_000_000 == 1, "the instants of another base time")
    assert talker.end(signal.SIGTERM) == 0
    assert listener.end(signal.SIGTERM) == 0
    # numbers belong to instants until a stream is started anew: no number is used while it is paused
    begins = {sample["launch_ns"] - sample["seq"] * 1_000_000 for sample in listener.of("latency")}
    assert sorted(begin % 1_000_000 for begin in begins) == [0, 1]


def test_the_agent_moves_a_stream(traffic: Any, agent: Any) -> None:
    agent.start()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::1", traffic.port))
        other.settimeout(20)
        traffic.talk("--agent", agent.path)
        agent.order(order="start", destination="::1")
        assert len(other.recv(2048)) == 64


def test_a_talker_that_is_held_waits_for_its_order(traffic: Any, agent: Any) -> None:
    agent.start()
    talker = traffic.talk("--agent", agent.path, "--hold", "--interval", "20ms", "--count", 5)
    wait_until(lambda: len(talker.of("talker")) > 2, "some intervals")
    assert not any(record["sent"] for record in talker.of("talker"))
    agent.order(order="start")
    assert talker.end() == 0
    assert talker.final()["sent"] + talker.final()["skipped"] == 5


def test_an_order_that_cannot_be_followed_is_answered(traffic: Any, agent: Any) -> None:
    agent.start()
    talker = traffic.talk("--agent", agent.path, "--interval", "20ms")
    for order in ({"interface": "nope0"}, {"vlan": 9999}, {"destination": "nowhere"}):
        agent.order(order="start", **order)
    wait_until(lambda: len([r for r in agent.reports if r["kind"] == "send-failed"]) >= 3, "three reports")
    texts = " ".join(report.get("message", "") for report in agent.reports)
    assert "no interface 'nope0', accepted" in texts
    assert "vlan: found 9999, accepted an integer from 0 to 4_094" in texts
    assert "destination: found 'nowhere', accepted an IPv4, IPv6 or MAC address" in texts
    agent.order(order="start")
    talker.wait_for("talker")
    before = talker.of("talker")[-1]["sent"]
    wait_until(lambda: talker.of("talker")[-1]["sent"] > before, "packets again")


def test_traffic_goes_on_without_an_agent_and_reports_when_it_comes(traffic: Any, agent: Any) -> None:
    listener = traffic.listen("--agent", agent.path)
    talker = traffic.talk("--count", 200)
    assert talker.end() == 0
    listener.wait_for("sequence", event="silent")
    agent.start()
    # what waited is one report, and a busy host makes more than one silence: none of them is forgotten
    said = sum(record["count"] for record in listener.of("sequence", event="silent"))

    def silent() -> list[dict[str, Any]]:
        return [report for report in agent.reports if report.get("event") == "silent"]

    wait_until(lambda: sum(report["count"] for report in silent()) == said, "the report")
    assert said % 3 == 0
    assert {(report["stream"], report["kind"]) for report in silent()} == {("stream", "sequence")}
    wait_until(lambda: agent.attached, "the attachment")
    attached = len(agent.attached)
    agent.stop()
    agent.start()
    wait_until(lambda: len(agent.attached) > attached, "the second attachment")
    assert listener.end(signal.SIGTERM) == 0
    assert listener.errors.count("goes on without it") >= 1


def test_an_agent_that_refuses_reports_is_told_of_once(traffic: Any, agent: Any) -> None:
    agent.refuses = True
    agent.start()
    listener = traffic.listen("--agent", agent.path)
    for _ in range(3):
        before = len(listener.of("sequence", event="silent"))
        assert traffic.talk("--count", 200).end() == 0
        wait_until(lambda before=before: len(listener.of("sequence", event="silent")) > before, "silence")  # type: ignore[misc]
    wait_until(lambda: "a report was refused: " in listener.errors, "the warning")
    assert listener.end(signal.SIGTERM) == 0
    assert listener.errors.count("a report was refused") == 1
    assert "reports did not get to the agent" in listener.errors


def test_silence_is_told_before_what_was_lost(tmp_path: Any, agent: Any) -> None:
    from tsn_agent.traffic_agent import AgentLink

    link = AgentLink(str(agent.path), ["s"], "listener")
    for number in range(2000):
        link.report("s", "sequence", event="lost", seq=number, count=2)
        link.report("s", "sequence", event=("silent", "resumed")[number % 2], seq=number, count=1)
    link.report("s", "sequence", event="silent", seq=2000, count=1)
    agent.start()
    wait_until(lambda: sum(report["count"] for report in agent.reports) == 6001, "all that was told")
    assert link.unreported == 0
    told = [(report["event"], report["seq"]) for report in agent.reports]
    # one of them may have been on its way before the others came
    assert told[-3:] == [("resumed", 1999), ("silent", 2000), ("lost", 1999)]
    link.close()


def test_what_waits_for_the_agent_is_bounded(tmp_path: Any) -> None:
    from tsn_agent.traffic_agent import MAX_REPORTS, AgentLink

    link = AgentLink(str(tmp_path / "nobody"), ["s"], "talker")
    for _ in range(MAX_REPORTS + 50):
        link.report("s", "skipped")
    assert 48 <= link.unreported <= 50  # one or none is in flight
    link.close()
