# SPDX-License-Identifier: Apache-2.0
"""What the TSN kernel has, seen from inside: the ground under every test of TSN."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.testbed.network import Network, netdevsim
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.mark.tsn_kernel
class TestAnyKernel:
    def test_taprio_and_etf_on_a_port_with_several_queues(self, network: Network) -> None:
        talker, listener = network.host("talker"), network.host("listener")
        port, _ = network.link(talker, listener, queues=4)
        schedule = "num_tc 2 map 0 1 queues 1@0 1@1 base-time 0 sched-entry S 01 500000 sched-entry S 02 500000"
        assist = "flags 0x1 txtime-delay 200000 clockid CLOCK_TAI"
        etf = "etf clockid CLOCK_TAI delta 300000 skip_sock_check"
        for words in (f"root handle 100 taprio {schedule} {assist}", f"parent 100:1 {etf}"):
            line = f"tc qdisc replace dev eth0 {words}"
            talker.run(*line.split(" "))
        shown = json.loads(talker.run("tc", "-j", "qdisc", "show", "dev", port.name))
        assert {qdisc["kind"] for qdisc in shown} >= {"taprio", "etf"}

    def test_hosts_reach_each_other_through_switches_in_a_vlan(self, network: Network) -> None:
        talker, listener = network.host("talker"), network.host("listener")
        s1, s2 = network.switch("s1", 5), network.switch("s2", 5)
        here, _ = network.link(talker, s1, ("eth0", "p1"))
        network.link(s1, s2, ("p2", "p1"))
        _, there = network.link(s2, listener, ("p2", "eth0"))
        here.vlan(5, p3=6).add("10.9.0.1/24", "fd09::1/64")
        there.vlan(5).add("10.9.0.2/24", "fd09::2/64")
        for address in ("10.9.0.2", "fd09::2"):
            wait_until(lambda address=address: _pings(talker, address), f"an answer of {address}")  # type: ignore[misc]

    def test_a_link_goes_down_on_both_sides(self, network: Network) -> None:
        one, other = network.link(network.host("a"), network.host("b"))
        other.down()
        wait_until(lambda: "NO-CARRIER" in one.host.ip("link", "show", one.name), "the loss of the carrier")

    def test_a_network_leaves_nothing(self) -> None:
        before = set(Path("/run/netns").iterdir())
        with Network() as network:
            network.link(network.host("a"), network.host("b"))
            assert set(Path("/run/netns").iterdir()) > before
        assert set(Path("/run/netns").iterdir()) == before


def _pings(host: object, address: str) -> bool:
    try:
        host.run("busybox", "ping", "-c", 1, "-W", 1, address)  # type: ignore[attr-defined]
    except RuntimeError:
        return False
    return True


@pytest.mark.tsn_kernel(own=True)
def test_a_simulated_card_has_a_ptp_clock() -> None:
    (name,) = netdevsim(11)
    assert list(Path(f"/sys/class/net/{name}/device/ptp").iterdir()) or Path("/dev/ptp0").exists()


@pytest.mark.tsn_kernel(simulated_time=True)
def test_a_sleep_takes_what_it_says() -> None:
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    time.sleep(30)
    assert time.clock_gettime_ns(time.CLOCK_MONOTONIC) - begin == pytest.approx(30_000_000_000, abs=10_000_000)
