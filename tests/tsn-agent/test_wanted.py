# SPDX-License-Identifier: Apache-2.0
"""What `tsn-agent apply` takes, and what it says of files that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tsn_agent import wanted

from libqos import tomlfile
from libqos.errors import InputError, QosError

EXAMPLES = Path(__file__).parents[2] / "tools/tsn-agent/examples"
SCHEDULE = """
[[schedules]]
interface = "eth0"
traffic_classes = 2
pcp = [0, 0, 0, 0, 0, 1, 0, 0]
{more}
[[schedules.entries]]
open = {open}
interval_ns = {interval}
"""


def resources(text: str) -> dict[Any, Any]:
    return wanted.of_document(tomlfile.parse(text, "f.toml")).resources()


def schedule(more: str = "", open: str = "[1]", interval: str = "300_000") -> str:  # noqa: A002 - the file's own word
    return SCHEDULE.format(more=more, open=open, interval=interval)


def test_each_table_becomes_resources() -> None:
    found = resources(
        """
        [[interfaces]]
        name = "eth0"
        mtu = 1400
        addresses = ["2001:DB8::1/64"]
        [[vlans]]
        interface = "eth0"
        id = 10
        egress = ["3:5", "0:0"]
        [[routes]]
        destination = "default"
        gateway = "192.0.2.254"
        [[routes]]
        destination = "2001:db8:1::/48"
        interface = "eth0.10"
        [[neighbours]]
        interface = "eth0.10"
        address = "192.0.2.2"
        mac = "02:00:00:00:00:AB"
        """
    )
    assert found == {
        ("link", "eth0"): {"up": True, "mtu": 1400},
        ("address", "eth0", "2001:db8::1/64"): {},
        ("vlan", "eth0.10"): {"interface": "eth0", "id": 10, "egress": [[3, 5]]},
        ("link", "eth0.10"): {"up": True},
        ("route", "0.0.0.0/0", 0): {"gateway": "192.0.2.254", "interface": None, "source": None},
        ("route", "2001:db8:1::/48", 1024): {"gateway": None, "interface": "eth0.10", "source": None},
        ("neighbour", "eth0.10", "192.0.2.2"): {"mac": "02:00:00:00:00:ab"},
    }


def test_gates_are_told_by_traffic_class() -> None:
    more = "base_time_ns = 5\ncycle_time_ns = 400_000\nmax_sdu_bytes = [500]"
    found = resources(schedule(more, open="[0, 1]"))["taprio", "eth0"]
    assert found["sched_entries"] == [[0, 0b11, 300_000]]
    assert found["map"] == [0, 0, 0, 0, 0, 1] + [0] * 10
    assert found["queues"] == [[1, 0], [1, 1]]
    assert (found["base_time"], found["cycle_time"], found["clockid"]) == (5, 400_000, 11)
    assert found["max_sdu"] == [500, 0]


def test_launch_times_for_each_queue_of_a_class() -> None:
    more = 'queues = ["1@0", "2@1"]\n[[schedules.launch]]\ntraffic_class = 1\ndelta_ns = 100_000\n'
    found = resources(schedule(more))
    assert [key for key in found if key[0] == "etf"] == [("etf", "eth0", 1), ("etf", "eth0", 2)]
    assert found["etf", "eth0", 1]["delta"] == 100_000


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_valid(file: Path) -> None:
    assert wanted.read(str(file)).resources()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (schedule(open="[2]"), ["f.toml:", "schedules[0]", "entries[0].open", "traffic class 2", "accepted 0 to 1"]),
        (schedule(open="[8]"), ["entries[0].open", "found [8]", "0 to 7"]),
        (schedule(interval="0"), ["f.toml:", "interval_ns", "found 0"]),
        (schedule("cycle_time_ns = 100_000"), ["eth0", "cycle_time", "less than the 300000 ns of all intervals"]),
        (schedule("queues = ['1@0', '1@0']"), ["eth0", "queues[1]", "offset 0", "1 or more"]),
        (schedule("queues = ['0@0']"), ["queues", "0@0", "count@offset"]),
        (schedule('offload = "hard"'), ["offload", "hard", "software | txtime-assist | full"]),
        (schedule("txtime_delay_ns = 5"), ["eth0", "txtime_delay", "txtime-assist"]),
        (schedule("base_time_ns = -1"), ["base_time_ns", "found -1"]),
        (schedule("max_sdu_bytes = [1, 2, 3]"), ["max_sdu_bytes", "found 3", "2"]),
        (schedule("[[schedules.launch]]\ntraffic_class = 2\n"), ["launch[0].traffic_class", "found traffic class 2"]),
        (schedule().split("[[schedules.entries]]", maxsplit=1)[0], ["eth0", "0 entries", "1 to 400"]),
        (SCHEDULE.replace("pcp = [0, 0, 0, 0, 0, 1, 0, 0]", "pcp = [0, 1]").format(more="", open="[1]", interval=5),
         ["pcp", "found 2 numbers", "8"]),
        (schedule() + schedule(), ["taprio eth0", "found twice"]),
        ('[[interfaces]]\nname = "eth0/1"', ["f.toml:2", "name", "eth0/1", "accepted"]),
        ('[[interfaces]]\nname = "eth0"\naddresses = ["192.0.2.1"]', ["f.toml:3", "addresses", "prefix length"]),
        ('[[interfaces]]\nname = "eth0"\nspeed = 1', ["f.toml:3", "speed", "unknown key"]),
        ('[[vlans]]\ninterface = "eth0"\nid = 4095', ["id", "4095", "1 to 4_094"]),
        ('[[vlans]]\ninterface = "eth0"\nid = 1\negress = ["8:1"]', ["egress", "8:1"]),
        ('[[vlans]]\ninterface = "enp0s31f6.long"\nid = 100', ["name", "enp0s31f6.long.100", "15 bytes"]),
        ('[[routes]]\ndestination = "10.0.0.1/8"\ngateway = "10.0.0.2"', ["destination", "10.0.0.1/8"]),
        ('[[routes]]\ndestination = "10.0.0.0/8"', ["neither gateway nor interface"]),
        ('[[routes]]\ndestination = "10.0.0.0/8"\ngateway = "2001:db8::1"', ["IPv4 and IPv6"]),
        ('[[neighbours]]\ninterface = "e"\naddress = "192.0.2.2"\nmac = "02:00"', ["f.toml:4", "mac", "02:00"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_work(text: str, words: list[str]) -> None:
    with pytest.raises(QosError) as caught:
        resources(text)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        resources('[[interfaces]]\nname = ""\n[[vlans]]\ninterface = "eth0"\nid = 0')
    assert len(str(caught.value).splitlines()) == 2
