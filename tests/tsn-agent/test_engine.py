# SPDX-License-Identifier: Apache-2.0
"""What `tsn-agent apply` does to a kernel: all of it or nothing, and what it takes away again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tsn_agent.engine import Engine

from libqos import tomlfile
from libqos.clock import tai_ns
from libqos.codec.rtnl.refusals import RefusedError
from libqos.errors import QosError
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tsn_agent.plan import Change

pytestmark = pytest.mark.tsn_kernel

CLASSES = """
[[schedules]]
interface = "eth0"
traffic_classes = 2
pcp = [0, 0, 0, 0, 0, 1, 0, 0]
queues = ["1@0", "2@1"]
"""
ENTRIES = """
[[schedules.entries]]
open = [1]
interval_ns = 300_000
[[schedules.entries]]
open = [0]
interval_ns = 700_000
"""
LAUNCH = """
[[schedules.launch]]
traffic_class = 1
"""
NETWORK = """
[[interfaces]]
name = "eth0"
mtu = 1400
addresses = ["192.0.2.1/24", "2001:db8::1/64"]
[[vlans]]
interface = "eth0"
id = 10
egress = ["5:5", "6:1"]
addresses = ["198.51.100.1/24"]
[[routes]]
destination = "203.0.113.0/24"
gateway = "198.51.100.2"
source = "192.0.2.1"
[[routes]]
destination = "2001:db8:1::/48"
gateway = "2001:db8::2"
metric = 7
[[neighbours]]
interface = "eth0.10"
address = "198.51.100.2"
mac = "02:00:00:00:00:02"
"""
ALL = NETWORK + CLASSES + ENTRIES + LAUNCH


def document(text: str) -> tomlfile.Document:
    return tomlfile.parse(text, "wanted.toml")


def actions(changes: list[Change]) -> list[str]:
    return [f"{record['action']} {record['resource']}" for record in (change.record() for change in changes)]


def sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def everything() -> Any:
    """What the kernel shows of links, addresses, routes and neighbours, without what it makes by itself."""
    links = [{key: link.get(key) for key in ("ifname", "flags", "mtu", "link", "linkinfo")}
             for link in json.loads(sh("ip -d -j link show"))]  # fmt: skip
    shown = json.loads(sh("ip -j addr show scope global"))
    addresses = [
        (link["ifname"], at["local"], at["prefixlen"]) for link in shown for at in link.get("addr_info", []) if at
    ]
    routes = sh("ip route; ip -6 route show proto static; ip neigh show nud permanent")
    return links, sorted(addresses), sorted(routes.splitlines())


def discipline() -> dict[str, Any]:
    """The root discipline of eth0, as `tc` tells it."""
    found: dict[str, Any] = json.loads(sh("tc -j qdisc show dev eth0 root"))[0]
    return found


@pytest.fixture(autouse=True)
def _interfaces() -> Iterator[None]:
    sh("ip link add eth0 numtxqueues 4 numrxqueues 4 type veth peer name far0 numtxqueues 1")
    sh("ip link set far0 up; ip link set eth0 up; ip link add eth1 numtxqueues 1 type veth peer name far1")
    yield
    sh("ip link del eth0; ip link del eth1")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "agent.db") as made:
        yield made


def test_all_of_it_is_there_then_and_gone_again(engine: Engine) -> None:
    before = everything()
    changes = engine.apply(document(ALL))
    assert {record["state"] for record in engine.show()} == {"ok"}
    assert engine.apply(document(ALL)) == []
    vlan = json.loads(sh("ip -d -j link show eth0.10"))[0]
    assert vlan["linkinfo"]["info_data"]["id"] == 10
    assert vlan["linkinfo"]["info_data"]["egress_qos"] == [{"from": 5, "to": 5}, {"from": 6, "to": 1}]
    assert "via 198.51.100.2 dev eth0.10" in sh("ip route get 203.0.113.9")
    shown = sorted(q["parent"] for q in json.loads(sh("tc -j qdisc show dev eth0")) if q["kind"] == "etf")
    assert shown == ["100:2", "100:3"]
    assert len(engine.clear()) == len(changes)
    assert everything() == before
    assert engine.show() == []


def test_a_dry_run_changes_nothing(engine: Engine) -> None:
    before = everything()
    told = engine.apply(document(ALL), dry_run=True)
    assert everything() == before
    assert engine.apply(document(ALL)) == told
    engine.clear(dry_run=True)
    assert {record["state"] for record in engine.show()} == {"ok"}


def test_what_is_no_longer_wanted_is_taken_away_and_the_rest_left(engine: Engine) -> None:
    engine.apply(document(ALL))
    assert actions(engine.apply(document(NETWORK))) == ["delete etf", "delete etf", "delete taprio"]
    assert discipline()["kind"] != "taprio"
    assert {record["state"] for record in engine.show()} == {"ok"}


def test_a_list_changes_while_it_runs(engine: Engine) -> None:
    engine.apply(document(ALL))
    far = tai_ns() + 3600 * 10**9
    later = ALL.replace("300_000", "400_000").replace("700_000", "600_000") + ""
    later = later.replace('interface = "eth0"\ntraffic', f'base_time_ns = {far}\ninterface = "eth0"\ntraffic')
    assert actions(engine.apply(document(later))) == ["change taprio"]
    assert engine.apply(document(later)) == []
    # both lists are there: the one that runs, and the one that is to follow (`tc -j` writes no JSON for the two)
    wait_until(lambda: "gatemask 0x2 interval 300000" in sh("tc qdisc show dev eth0"), "the first list runs")
    assert f"base-time {far}" in sh("tc qdisc show dev eth0")


def test_other_classes_need_a_new_one(engine: Engine) -> None:
    engine.apply(document(ALL))
    changes = engine.apply(document(ALL.replace('["1@0", "2@1"]', '["1@0", "2@2"]')))
    assert actions(changes) == ["delete etf", "delete etf", "delete taprio", "add taprio", "add etf", "add etf"]
    assert {record["state"] for record in engine.show()} == {"ok"}


def test_a_vlan_gets_another_number_and_keeps_what_stands_on_it(engine: Engine) -> None:
    engine.apply(document(NETWORK))
    engine.apply(document(NETWORK.replace("id = 10", "id = 20\nname = 'eth0.10'")))
    assert {record["state"] for record in engine.show()} == {"ok"}
    assert "id 20" in sh("ip -d link show eth0.10")


def test_base_time_in_the_past_stands_for_the_cycles_that_follow(engine: Engine) -> None:
    past = CLASSES + "base_time_ns = 250_000\n" + ENTRIES
    before = tai_ns()
    engine.apply(document(past))
    wait_until(lambda: discipline()["options"].get("base_time"), "the schedule's beginning")
    begin = discipline()["options"]["base_time"]
    assert begin % 1_000_000 == 250_000
    assert begin >= before
    assert engine.apply(document(past)) == []


def test_short_windows_are_found_as_they_were_set(engine: Engine) -> None:
    short = CLASSES + ENTRIES.replace("300_000", "1_000")
    engine.apply(document(short))
    wait_until(lambda: "schedule" in discipline()["options"], "the list runs")
    assert engine.apply(document(short)) == []


def test_what_was_there_before_stays(engine: Engine) -> None:
    sh("ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 mtu 1300; ip route add 203.0.113.0/24 dev far0")
    before = everything()
    engine.apply(document(ALL))
    assert "198.51.100.2" in sh("ip route show 203.0.113.0/24")
    engine.clear()
    assert everything() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[routes]]\ndestination = "10.0.0.0/8"\ngateway = "172.16.0.1"', ["route 10.0.0.0/8", "on no network"]),
        ('[[interfaces]]\nname = "eth1"\nmtu = 69\naddresses = ["2001:db8:9::1/64"]', ["eth1"]),
        (CLASSES.replace("eth0", "eth1") + ENTRIES, ["eth1", "one transmit queue"]),
        (CLASSES.replace('"2@1"', '"4@1"') + ENTRIES, ["queues[1]", "4@1"]),
        (ALL.replace('interface = "eth0"\nid', 'interface = "eth7"\nid'), ["no interface eth7", "eth0"]),
    ],
)
def test_what_the_kernel_refuses_leaves_nothing_behind(engine: Engine, text: str, words: list[str]) -> None:
    before = everything()
    with pytest.raises(RefusedError) as caught:
        engine.apply(document(text if text.startswith("\n[[sch") else ALL.replace(CLASSES + ENTRIES + LAUNCH, "") + text
                              if "eth7" not in text else text))  # fmt: skip
    for word in words:
        assert word in str(caught.value)
    assert everything() == before
    assert engine.show() == []


def test_of_two_agents_the_second_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.apply(document(ALL))
    with Engine(tmp_path / "other.db") as other:
        with pytest.raises(QosError, match="taprio of somebody else"):
            other.apply(document(CLASSES + ENTRIES.replace("300_000", "100_000")))
        with pytest.raises(QosError, match="another interface of that name"):
            other.apply(document('[[vlans]]\ninterface = "eth0"\nid = 11\nname = "eth0.10"'))
        assert {record["state"] for record in engine.show()} == {"ok"}


def test_somebody_elses_discipline_is_left(engine: Engine) -> None:
    sh("tc qdisc add dev eth0 root handle 7: etf clockid CLOCK_TAI delta 1000")
    with pytest.raises(QosError, match="discipline etf of somebody else"):
        engine.apply(document(ALL))


def test_what_somebody_took_away_is_seen_and_set_again(engine: Engine) -> None:
    engine.apply(document(ALL))
    sh("tc qdisc del dev eth0 root; ip link set eth0 mtu 1500; ip neigh del 198.51.100.2 dev eth0.10")
    states = {(record["resource"], record["name"]): record for record in engine.show() if record["state"] != "ok"}
    assert states["taprio", "eth0"]["state"] == "missing"
    assert states["link", "eth0"]["differs"] == ["mtu"]
    assert set(actions(engine.again())) == {"change link", "add neighbour", "add taprio", "add etf"}
    assert {record["state"] for record in engine.show()} == {"ok"}


def test_without_the_privilege(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(NETWORK)
    command = ["setpriv", "--bounding-set=-net_admin", f"{sys.prefix}/bin/tsn-agent", "apply"]
    command += ["--state", str(tmp_path / "a.db"), str(tmp_path / "w.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "CAP_NET_ADMIN is missing: run as root" in done.stderr


def killed_at(path: Path, text: str, step: int) -> bool:
    """Apply in a child that is killed before its change `step // 2`, or after it; False when it got to the end."""
    child = os.fork()
    if child == 0:
        try:
            engine = Engine(path)
            whole, count = engine.kernel.set, 0

            def one(*arguments: Any) -> None:
                nonlocal count
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                whole(*arguments)
                if count + 1 == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 2

            engine.kernel.set = one  # type: ignore[method-assign, assignment]
            engine.apply(document(text))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "start", ["", NETWORK, ALL.replace('"2@1"', '"1@1"').replace("id = 10", "id = 9\nname='eth0.10'")]
)
def test_killed_in_the_middle_the_next_takes_it_back(tmp_path: Path, start: str) -> None:
    path = tmp_path / "agent.db"
    with Engine(path) as engine:
        engine.apply(document(start))
    before = everything()
    step = 0
    while killed_at(path, ALL, step):
        with Engine(path) as engine:
            assert engine.journal.pending()
            engine.recover()
            assert engine.journal.pending() == []
            assert everything() == before, f"step {step}"
            assert all(record["state"] == "ok" for record in engine.show())
        step += 1
    assert step >= 5
    with Engine(path) as engine:
        assert all(record["state"] == "ok" for record in engine.show())
        engine.clear()
