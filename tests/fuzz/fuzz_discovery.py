# SPDX-License-Identifier: Apache-2.0
"""What anybody on the link announces. The first byte says whether we have a key, and of which family we are; then up to
three datagrams, each behind two bytes: who sends it and what happens before, and its length."""

import asyncio
import hmac
import ipaddress
import logging
import socket
import tempfile
from pathlib import Path

from selened import discovery
from selened.announcement import Announcement, decode, encode
from selened.core import Core
from selened.datapath import Datapath
from selened.multicast import Interface
from selened.neighbours import COUNTERS
from selened.peers import Peers
from selened.settings import Settings
from selened.wire import Address

from libqos import config

KEY = b"a key of the fuzzer's own"
MAX_PEERS = 1
STEPS = [0]  # datagrams
NETWORKS = (ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fd00::/64"))
CHANNEL = discovery.Channel(Interface("eth0", 1, NETWORKS), "239.255.74.71")
PAUSES_S = (0.0, 0.0, 1.5, 400.0)
COUNTED = {*COUNTERS, *(f"discovery_{name}" for name in (*COUNTERS, "refused"))}


class Loop(asyncio.SelectorEventLoop):
    """With a clock of our own. It never runs: nothing is waited for."""

    now = 0.0

    def time(self) -> float:
        return self.now


def _discovery(address: str, key: bytes) -> discovery.Discovery:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(key)
        given = {"enabled": True, "site": "hall", "max_peers": MAX_PEERS, "key_file": file.name if key else ""}
        overrides = {f"discovery.{name}": value for name, value in given.items()}
        settings = config.load(Settings, tool="fuzz", environ={}, overrides={"address": address} | overrides)
        core = Core(settings, Datapath(Path("unused"), lambda *_: None, lambda _: None), Address(address, 7471), 0)
        one = discovery.Discovery(core, Peers(core, None))
    one._instance = 1
    return one


logging.disable(logging.CRITICAL)
LOOP = Loop()
asyncio._set_running_loop(LOOP)
DISCOVERIES = [_discovery(address, key) for key in (b"", KEY) for address in ("10.0.0.1", "fd00::1")]


def _decode(data: bytes, key: bytes) -> Announcement:
    said = decode(data, key)
    assert encode(said, key) == data, "one value has one encoding"
    return said


discovery.decode = _decode  # type: ignore[attr-defined, assignment]


def _hear(one: discovery.Discovery, how: int, data: bytes) -> None:
    neighbours = one.neighbours
    source = "fe80::1" if how & 2 else "10.0.0.9"
    if not how & 6 and len(data) >= 32:
        source = socket.inet_ntoa(data[28:32])
    if pause := PAUSES_S[how >> 3 & 3]:
        LOOP.now += pause
        neighbours.expire(LOOP.now, lambda _: bool(how & 32))
    before = sum(neighbours.counts.values())
    if how & 1:  # by somebody who has the key
        data = data[:5] + b"\1" + data[6:]
        data += hmac.digest(KEY, data, "sha256")
    one._take(CHANNEL, data, source)
    assert sum(neighbours.counts.values()) > before, "it is not counted"


def test_one_input(data: bytes) -> None:
    one = DISCOVERIES[data[0] & 3 if data else 0]
    neighbours = one.neighbours
    neighbours.entries.clear()
    neighbours.counts.clear()
    at = 1
    for _ in range(3):
        if at + 2 > len(data):
            break
        STEPS[0] += 1
        _hear(one, data[at], data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + data[at + 1]
    accepted = neighbours.accepted
    assert len(accepted) <= MAX_PEERS
    assert len(neighbours.entries) <= 2 * MAX_PEERS
    assert neighbours.counts.keys() | one.core.notices.counts.keys() <= COUNTED
    for item in accepted:
        assert item.address != one.core.address
        assert neighbours.allows(item.address.ip, NETWORKS)
