# SPDX-License-Identifier: Apache-2.0
"""Daemons that find each other: several on this host's loopback, and hosts on a bridge, each a network namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from selened.announcement import Announcement, encode
from selened.wire import Address

from tests.selened.conftest import Daemon, connected
from tests.waiting import TIMEOUT_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP, PORT = "239.255.74.71", 7472
SITE = f"test {os.getpid()}"  # loopback belongs to everybody on this machine


def discovery(*lines: str, site: str = SITE) -> str:
    return "\n".join(["[discovery]", "enabled = true", f'site = "{site}"', "interval_s = 1", *lines, ""])


def address_of(daemon: Daemon) -> str:
    address: str = daemon.info("daemon")[0]["address"]
    return address


def peers_of(daemon: Daemon) -> set[str]:
    return {peer["address"] for peer in daemon.info("peer")}


def heard(daemon: Daemon) -> dict[str, Any]:
    return daemon.info("discovery")[0]


def wait_for_each_other(daemons: list[Daemon]) -> None:
    for daemon in daemons:
        others = {address_of(other) for other in daemons if other is not daemon}
        wait_until(lambda daemon=daemon, others=others: peers_of(daemon) == others and connected(daemon), "the others")  # type: ignore[misc]


class Stranger:
    """Somebody who announces what he likes, from an address of his choice."""

    def __init__(self, ip: str = "127.0.0.1") -> None:
        self.ip = ip
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ip, 0))
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, (GROUP, PORT))

    def announce(self, port: int, ip: str = "", key: bytes = b"", **fields: Any) -> None:
        values: dict[str, Any] = {
            "host": port,
            "instance": port,
            "lifetime_s": 5,
            "sent_ns": time.time_ns(),
            "site": SITE,
        } | fields
        self.send(encode(Announcement(Address(ip or self.ip, port), **values), key))


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    one = Stranger()
    yield one
    one.socket.close()


# ---- On loopback ----


def test_daemons_find_each_other_and_say_how_and_when(make_daemon: Any) -> None:
    left, right = make_daemon("left", discovery()).start(), make_daemon("right", discovery()).start()
    wait_for_each_other([left, right])
    [peer] = left.info("peer")
    assert peer["configured"] is False
    found = peer["discovered"]
    assert (found["interface"], found["group"], found["source"]) == ("lo", GROUP, "127.0.0.1")
    assert 0 < found["first_ts_ns"] <= found["last_ts_ns"] <= time.time_ns()
    assert heard(left)["own"] > 0, "it hears itself, and does not answer"
    receiver = right.client()
    receiver.stream()
    receiver.sink(5)
    sender = left.client()
    sender.stream()
    sender.source(5)
    assert len(sender.routes()) == 1
    assert right.stop() == 0
    wait_until(lambda: not peers_of(left), "the goodbye")


def test_sites_keep_apart(make_daemon: Any) -> None:
    left = make_daemon("left", discovery()).start()
    right = make_daemon("right", discovery(site=f"{SITE} b")).start()
    wait_until(lambda: heard(left)["other_sites"] and heard(right)["other_sites"], "announcements")
    assert not peers_of(left)
    assert not peers_of(right)


def test_who_is_configured_stays_whatever_is_discovered(make_daemon: Any) -> None:
    right = make_daemon("right", discovery())
    peer = f'[[peers]]\naddress = "127.0.0.1"\nport = {right.port}\n'
    left = make_daemon("left", discovery() + peer).start()
    right.start()
    wait_for_each_other([left, right])
    wait_until(lambda: left.info("peer")[0]["discovered"], "the announcement")
    assert left.info("peer")[0]["configured"] is True
    right.stop()
    wait_until(lambda: not left.info("peer")[0]["discovered"], "the goodbye")
    assert left.info("peer")[0]["configured"] is True
    right.start()
    wait_for_each_other([left, right])
    wait_until(lambda: left.info("peer")[0]["discovered"], "the announcement")
    left.config.write_text(discovery())
    left.process.send_signal(signal.SIGHUP)
    wait_until(lambda: left.info("peer")[0]["configured"] is False, "the reload")
    assert connected(left)


def test_only_who_has_the_key_is_found(make_daemon: Any, tmp_path: Path) -> None:
    keys = []
    for name in ("one", "other"):
        keys.append(tmp_path / name)
        keys[-1].write_text(f"{name} secret of this test\n")
        keys[-1].chmod(0o600)
    one, two = (make_daemon(name, discovery(f'key_file = "{keys[0]}"')).start() for name in ("one", "two"))
    other = make_daemon("other", discovery(f'key_file = "{keys[1]}"')).start()
    none = make_daemon("none", discovery()).start()
    wait_for_each_other([one, two])
    for daemon in (one, other, none):
        wait_until(lambda daemon=daemon: heard(daemon)["unauthenticated"] > 2, "announcements")  # type: ignore[misc]
    assert not peers_of(other)
    assert not peers_of(none)
    assert peers_of(one) == {address_of(two)}
    assert one.info("daemon")[0]["config"]["discovery"]["key_file"] is True
    assert one.notices()["discovery_unauthenticated"] > 2


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (None, 0, "No such file or directory"),
        ("short\n", 0o600, "found 5 bytes in"),
        ("long enough for a secret\n", 0o604, "is open to everybody; chmod o="),
    ],
)
def test_a_key_that_is_none_ends_the_start(
    make_daemon: Any, tmp_path: Path, content: str | None, mode: int, text: str
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
        key.chmod(mode)
    daemon = make_daemon("s", discovery(f'key_file = "{key}"'))
    done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "[discovery] key_file: " in done.stderr
    assert text in done.stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('groups = ["10.0.0.1"]', "discovery.groups: found ['10.0.0.1'], accepted a list of: a multicast address"),
        ('allow = ["10.0.0.1/24"]', "discovery.allow: found ['10.0.0.1/24'], accepted a list of: a network such as"),
        ("groups = []", "groups: found none, accepted one or more"),
        ("interval_s = 0", "discovery.interval_s: found 0, accepted an integer from 1 to 60"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(make_daemon: Any, line: str, text: str) -> None:
    config = f"[discovery]\nenabled = true\n{line}\n"
    daemon = make_daemon("s", config, "--check")
    done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"{daemon.config}:" in done.stderr
    assert text in done.stderr


def test_a_restart_of_the_daemon_interrupts_nothing(make_daemon: Any, bin_dir: Path, tmp_path: Path) -> None:
    left, right = make_daemon("left", discovery()).start(), make_daemon("right", discovery()).start()
    wait_for_each_other([left, right])
    count = 2000
    with subscriber(bin_dir, right, tmp_path / "got", count) as sub:
        wait_until(lambda: left.info("peer")[0]["sinks"] == 1, "the sink")
        with publisher(bin_dir, left, count, "--rate", "400") as pub:
            wait_until(lambda: lines_of(tmp_path / "got") > 100, "messages")
            left.process.kill()
            left.process.wait()
            left.start()
            wait_for_each_other([left, right])
            assert pub.wait(TIMEOUT_S) == 0
        assert sub.wait(TIMEOUT_S) == 0
    assert (tmp_path / "got").read_text() == numbers(count)


# ---- Strangers ----


def test_rubbish_is_counted_and_harms_nobody(make_daemon: Any, stranger: Stranger) -> None:
    daemon = make_daemon("s", discovery()).start()
    good = encode(Announcement(Address("127.0.0.1", 9), 1, 1, 5, 1, SITE))
    for data in (b"", b"\0", b"M-SEARCH * HTTP/1.1\r\n", os.urandom(60000), good[:-1], good + b"!", bytes(80)):
        stranger.send(data)
    stranger.send(good[:4] + b"\x09" + good[5:])
    wait_until(lambda: heard(daemon)["rubbish"] >= 7 and heard(daemon)["other_versions"] >= 1, "the count")
    assert not peers_of(daemon)
    assert not heard(daemon)["refused"]


def test_strangers_are_refused_bounded_and_let_go(make_daemon: Any, stranger: Stranger) -> None:
    daemon = make_daemon("s", discovery("max_peers = 3", 'allow = ["127.0.0.1/32"]')).start()
    for number in range(20):
        stranger.announce(20000 + number, lifetime_s=1)
    wait_until(lambda: heard(daemon)["full"] == 17, "the count")
    assert len(peers_of(daemon)) == 3
    elsewhere = Stranger("127.0.0.9")
    elsewhere.announce(20000, host=1)
    elsewhere.announce(daemon.port, ip="127.0.0.1")
    stranger.announce(daemon.port)
    wait_until(lambda: heard(daemon)["conflicts"] == 1 and heard(daemon)["forged"] == 1, "the count")
    [refused] = heard(daemon)["refused"]
    assert refused["address"] == "127.0.0.9:20000"
    assert refused["reason"] == "not in allow (127.0.0.1/32)"
    elsewhere.socket.close()
    wait_until(lambda: not peers_of(daemon), "the end of their lifetime")


def test_a_flood_is_looked_at_in_portions(make_daemon: Any, stranger: Stranger) -> None:
    left = make_daemon("left", discovery()).start()
    wait_until(lambda: heard(left)["announcements"], "the start")
    for _ in range(5000):
        stranger.send(b"\0" * 80)
    wait_until(lambda: left.notices().get("discovery_floods"), "the notice")
    right = make_daemon("right", discovery()).start()
    wait_for_each_other([left, right])


# ---- Hosts on a bridge ----


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host(Daemon):
    """A network namespace with one interface, on a bridge with the others; no default route, no loopback."""

    def __init__(self, directory: Path, bridge: str, number: int, address: str) -> None:
        super().__init__(directory, f"h{number}", f'address = "{address}"\n{discovery()}', port=7471)
        self.namespace = f"{bridge}-{number}"
        self.prefix = f"{address}/{64 if ':' in address else 24}"
        ip("netns", "add", self.namespace)
        ip("-n", bridge, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("-n", bridge, "link", "set", f"p{number}", "master", "bridge", "up")
        self.up()

    def up(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it is there already
            ip("-n", self.namespace, "address", "add", self.prefix, "dev", "eth0", *["nodad"] * (":" in self.prefix))
        ip("-n", self.namespace, "link", "set", "eth0", "up")

    def command(self) -> list[str]:
        return [*self.inside(), *super().command()]

    def inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]

    def leave(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
        ip("netns", "delete", self.namespace)


@pytest.fixture
def make_hosts(tmp_path: Path) -> Iterator[Callable[[str], list[Host]]]:
    """Three hosts: `make_hosts("10.77.0.{}")`, running."""
    bridge = f"selene{os.getpid()}"
    with contextlib.ExitStack() as stack:

        def make(addresses: str) -> list[Host]:
            ip("netns", "add", bridge)
            stack.callback(ip, "netns", "delete", bridge)
            ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
            ip("-n", bridge, "link", "set", "bridge", "up")
            made = []
            for number in (1, 2, 3):
                made.append(Host(tmp_path, bridge, number, addresses.format(number)))
                stack.callback(made[-1].leave)
            for host in made:
                host.start()
            return made

        yield make


def numbers(count: int) -> str:
    return "".join(f"{number}\n" for number in range(count))


def lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n")


@contextlib.contextmanager
def running(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def subscriber(bin_dir: Path, daemon: Daemon, file: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """lunar-sub at a daemon, writing to `file`."""
    inside = daemon.inside() if isinstance(daemon, Host) else []
    command = [*inside, str(bin_dir / "lunar-sub"), "topic", "--count", str(count), "--socket", str(daemon.path)]
    with file.open("wb") as out, running(command, stdout=out) as process:
        yield process


@contextlib.contextmanager
def publisher(bin_dir: Path, daemon: Daemon, count: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """lunar-pub at a daemon, publishing numbers."""
    inside = daemon.inside() if isinstance(daemon, Host) else []
    command = [*inside, str(bin_dir / "lunar-pub"), "topic", "--socket", str(daemon.path), *options]
    with running(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(numbers(count).encode())
        process.stdin.close()
        yield process


@pytest.mark.needs_root
@pytest.mark.needs_netns
@pytest.mark.timeout(180)  # three daemons, started twice, and all that they find out
@pytest.mark.parametrize(
    "addresses",
    ["10.77.0.{}", pytest.param("fd77::{}", marks=pytest.mark.needs_ipv6)],
    ids=["ipv4", "ipv6-only"],
)
def test_hosts_find_each_other_carry_traffic_and_leave(
    make_hosts: Any, bin_dir: Path, tmp_path: Path, addresses: str
) -> None:
    one, two, three = hosts = make_hosts(addresses)
    wait_for_each_other(hosts)
    count = 1000
    with (
        subscriber(bin_dir, two, tmp_path / "two", count) as first,
        subscriber(bin_dir, three, tmp_path / "three", count) as second,
    ):
        wait_until(lambda: [peer["sinks"] for peer in one.info("peer")] == [1, 1], "the sinks")
        with publisher(bin_dir, one, count) as pub:
            assert [item.wait(TIMEOUT_S) for item in (pub, first, second)] == [0, 0, 0]
    assert (tmp_path / "two").read_text() == (tmp_path / "three").read_text() == numbers(count)
    assert three.stop() == 0
    for host in (one, two):
        wait_until(lambda host=host: len(peers_of(host)) == 1, "the goodbye")  # type: ignore[misc]
    assert two.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not peers_of(one), "the end of its lifetime")
    for host in (two, three):
        host.start()
    wait_for_each_other(hosts)


@pytest.mark.needs_root
@pytest.mark.needs_netns
def test_an_interface_that_goes_and_comes_back(make_hosts: Any) -> None:
    one, two, three = hosts = make_hosts("10.77.0.{}")
    wait_for_each_other(hosts)
    ip("-n", one.namespace, "link", "set", "eth0", "down")
    wait_until(lambda: not heard(one)["channels"], "the end of the channels")
    assert "no interface to announce on (the one with 10.77.0.1)" in one.said()
    for host in (two, three):
        wait_until(lambda host=host: address_of(one) not in peers_of(host), "the end of its lifetime")  # type: ignore[misc]
    one.up()
    wait_for_each_other(hosts)
    assert [channel["interface"] for channel in heard(one)["channels"]] == ["eth0", "eth0"]
