# SPDX-License-Identifier: Apache-2.0
"""Who becomes a peer by announcing, for how long, and what a stranger can do about it."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import pytest
from selened.announcement import Announcement
from selened.neighbours import COUNTERS, Neighbours, Where
from selened.wire import Address

OWN = Announcement(Address("10.0.0.1", 7471), 1, 1, 0, 0, "here")
THEIRS = Announcement(Address("10.0.0.2", 7471), 2, 2, 10, 100, "here")
LINK = ipaddress.ip_network("10.0.0.0/24")


class Table(Neighbours):
    """With a clock that a test sets."""

    def __init__(self, allow: tuple[str, ...] = (), maximum: int = 4) -> None:
        self.warnings: list[tuple[str, str]] = []
        super().__init__(
            lambda: OWN, [ipaddress.ip_network(item) for item in allow], maximum,
            lambda kind, text: self.warnings.append((kind, text)),
        )  # fmt: skip
        self.now = 0.0

    def hear(self, said: Announcement = THEIRS, source: str = "", **change: Any) -> bool:
        said = dataclasses.replace(said, **change)
        return self.take(said, Where("eth0", "239.255.74.71", source or said.address.ip, (LINK,)), self.now, 0)

    def peers(self) -> list[str]:
        return [item.address.ip for item in self.accepted]

    def gone(self, *connected: str) -> list[str]:
        return [item.address.ip for item in self.expire(self.now, lambda address: address.ip in connected)]


@pytest.fixture
def table() -> Table:
    return Table()


def test_who_announces_is_a_peer_and_news_once(table: Table) -> None:
    assert table.hear()
    assert not table.hear(sent_ns=200)
    assert table.peers() == ["10.0.0.2"]
    assert table.counts == {"heard": 2}
    assert not table.warnings


def test_a_new_start_is_news(table: Table) -> None:
    table.hear()
    assert table.hear(instance=3, sent_ns=200)


def test_what_we_said_ourselves_and_other_sites_are_ignored(table: Table) -> None:
    assert not table.hear(OWN)
    assert not table.hear(site="there")
    assert table.counts == {"own": 1, "other_sites": 1}
    assert not table.entries


def test_a_peer_ends_with_its_lifetime_unless_it_is_connected(table: Table) -> None:
    table.hear()
    table.now = 9.9
    assert not table.gone()
    table.now = 10.0
    assert not table.gone("10.0.0.2")
    assert table.peers() == ["10.0.0.2"]
    assert table.gone() == ["10.0.0.2"]
    assert not table.peers()


def test_no_lifetime_is_longer_than_the_longest(table: Table) -> None:
    table.hear(lifetime_s=65535)
    table.now = 300.0
    assert table.gone() == ["10.0.0.2"]


def test_a_goodbye_ends_it_after_a_second(table: Table) -> None:
    table.hear()
    table.hear(lifetime_s=0, sent_ns=200)
    assert not table.gone()
    table.now = 1.0
    assert not table.gone("10.0.0.2")  # somebody may have said it in its name
    assert table.gone() == ["10.0.0.2"]


def test_a_goodbye_of_an_earlier_start_or_of_a_stranger_changes_nothing(table: Table) -> None:
    table.hear()
    table.hear(lifetime_s=0, instance=9, sent_ns=200)
    table.hear(lifetime_s=0, sent_ns=200, address=Address("10.0.0.9", 7471))
    table.now = 5.0
    assert not table.gone()
    assert len(table.entries) == 1


def test_what_was_recorded_is_not_believed_again(table: Table) -> None:
    table.hear(sent_ns=200)
    table.hear(sent_ns=100, lifetime_s=0)
    table.now = 5.0
    table.hear(sent_ns=100)
    assert table.counts["stale"] == 2
    table.now = 10.0
    assert table.gone() == ["10.0.0.2"]


def test_a_daemon_announces_only_itself(table: Table) -> None:
    table.hear()
    assert not table.hear(source="10.0.0.66", host=9, instance=9, sent_ns=1 << 60, lifetime_s=0)
    assert table.counts["forged"] == 1
    assert not table.hear(sent_ns=200)
    assert table.counts["stale"] == 0
    assert [kind for kind, _ in table.warnings] == ["discovery_forged"]


def test_over_ipv6_the_sender_is_that_of_the_link(table: Table) -> None:
    assert table.hear(source="fe80::1")
    assert table.peers() == ["10.0.0.2"]


@pytest.mark.parametrize(
    ("ip", "allow", "refused"),
    [
        ("10.0.0.9", (), ""),
        ("10.0.1.9", (), "not in a network of this interface (10.0.0.0/24)"),
        ("127.0.0.1", (), "not in a network of this interface (10.0.0.0/24)"),
        ("10.0.1.9", ("10.0.1.0/28", "192.168.0.0/16"), ""),
        ("10.0.0.9", ("10.0.1.0/28",), "not in allow (10.0.1.0/28)"),
        ("fd00::9", (), "its address is of another family than 10.0.0.1"),
    ],
)
def test_only_allowed_addresses_become_peers(ip: str, allow: tuple[str, ...], refused: str) -> None:
    table = Table(allow)
    assert table.hear(address=Address(ip, 7471))
    assert table.peers() == ([] if refused else [ip])
    assert [item.refusal for item in table.entries.values()] == [refused]
    table.hear(address=Address(ip, 7471), sent_ns=200)
    assert [kind for kind, _ in table.warnings] == (["discovery_refused"] if refused else [])


def test_our_own_address_of_somebody_else_is_said(table: Table) -> None:
    table.hear(address=OWN.address)
    assert table.counts["conflicts"] == 1
    assert "our own address 10.0.0.1:7471" in table.warnings[0][1]
    assert not table.entries


@pytest.mark.parametrize(("host", "other"), [(2, "10.0.0.2:7471"), (1, "this host")])
def test_a_host_id_that_is_there_twice_is_said_once(table: Table, host: int, other: str) -> None:
    table.hear()
    for number in range(3):
        table.hear(address=Address("10.0.0.3", 7471), instance=3, host=host, sent_ns=200 + number)
    [(kind, text)] = table.warnings
    assert kind == "discovery_conflicts"
    assert text == f"10.0.0.3:7471 announces the host id {host:08x}, as {other} does"


def test_two_daemons_with_one_address_are_said_once(table: Table) -> None:
    for number in range(6):
        table.hear(instance=2 + number % 2, sent_ns=100 + number)
    [(kind, text)] = table.warnings
    assert kind == "discovery_conflicts"
    assert "two daemons announce 10.0.0.2:7471" in text


def test_the_table_is_bounded_for_peers_and_for_those_who_are_refused() -> None:
    table = Table(maximum=4)
    for number in range(2, 40):
        table.hear(address=Address(f"10.0.0.{number}", 7471), host=number, instance=number)
        table.hear(address=Address(f"10.0.1.{number}", 7471), host=100 + number, instance=100 + number)
    assert len(table.accepted) == 4
    assert len(table.entries) == 8
    assert table.counts["full"] == 68
    assert set(table.counts) <= set(COUNTERS)
    table.now = 10.0
    table.gone()
    assert table.hear(address=Address("10.0.0.39", 7471))
