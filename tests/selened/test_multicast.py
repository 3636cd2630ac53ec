# SPDX-License-Identifier: Apache-2.0
"""Interfaces and the sockets of discovery, on loopback."""

from __future__ import annotations

import ipaddress
import select
import socket

import pytest
from selened.multicast import Interface, interfaces, join

from tests.waiting import TIMEOUT_S, free_port

GROUP = "239.255.74.72"


def loopback() -> Interface:
    [interface] = interfaces([], "127.0.0.1")
    return interface


def test_the_interface_of_an_address_is_found_with_its_networks() -> None:
    interface = loopback()
    assert interface.number == socket.if_nametoindex(interface.name)
    assert ipaddress.ip_network("127.0.0.0/8") in interface.networks


def test_interfaces_are_found_by_name_and_those_that_are_not_there_are_left_out() -> None:
    assert interfaces([loopback().name, "no-such"], "192.0.2.1") == [loopback()]
    assert interfaces([], "192.0.2.1") == []


def test_sockets_of_one_group_hear_each_other_and_nothing_leaves_the_link() -> None:
    port = free_port()
    with join(GROUP, port, loopback(), "127.0.0.1") as one, join(GROUP, port, loopback(), "127.0.0.1") as two:
        assert one.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"not to the group", ("127.0.0.1", port))
        one.sendto(b"to the group", (GROUP, port))
        for sock in (one, two):
            assert select.select([sock], [], [], TIMEOUT_S)[0]
            data, sender = sock.recvfrom(100)
            assert (data, sender) == (b"to the group", ("127.0.0.1", port))


@pytest.mark.needs_ipv6
def test_a_group_of_ipv6_is_joined_on_its_interface_alone() -> None:
    with join("ff12::8000:7472", free_port(), loopback(), "127.0.0.1") as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 1
        assert sock.getsockname()[3] == loopback().number


def test_an_interface_without_addresses_of_the_family_is_refused_with_a_reason() -> None:
    bare = Interface("lo", loopback().number, (ipaddress.ip_network("127.0.0.0/8"),))
    with pytest.raises(OSError, match="lo has no IPv6 address"):
        join("ff12::8000:7472", free_port(), bare, "127.0.0.1")
