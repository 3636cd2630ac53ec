# SPDX-License-Identifier: Apache-2.0
"""The daemon `tsn-agent run` and the commands that ask it, under a kernel that can do what they want."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from libqos import rpc
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.tsn_kernel

SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the module socket lacks it
PROGRAM = f"{sys.prefix}/bin/tsn-agent"
STREAMS = """
[[interfaces]]
name = "eth0"
addresses = ["192.0.2.1/24"]
[[schedules]]
interface = "eth0"
traffic_classes = 2
pcp = [0, 0, 0, 0, 0, 1, 0, 0]
[[schedules.entries]]
open = [0, 1]
interval_ns = 1_000_000
"""


def sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


class Daemon:
    """A `tsn-agent run` in `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "a.sock"
        command = [PROGRAM, "run", "--socket", str(self.socket), "--state", str(folder / "a.db"), "--interval-s", "0.1"]
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen([*command, *options], stderr=self.log, text=True)
        wait_until(lambda: self.process.poll() is not None or "ready at" in self.said(), "the daemon's start")

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, *arguments, "--socket", str(self.socket)]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)

    def records(self, *arguments: str, text: str | None = None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ask(*arguments, text=text).stdout.splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.log.close()
        return status


@pytest.fixture(autouse=True)
def _interfaces() -> Iterator[None]:
    sh("ip link add eth0 numtxqueues 4 numrxqueues 4 type veth peer name far0 numtxqueues 1")
    sh("ip link set far0 up; ip link set eth0 up")
    yield
    sh("ip link del eth0")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    assert made.process.poll() is None, made.said()
    yield made
    if made.process.poll() is None:
        assert made.end() == 0, made.said()


def test_what_the_socket_is_told_is_done(daemon: Daemon) -> None:
    told = daemon.records("apply", "-", "--dry-run", text=STREAMS)
    assert [(record["action"], record["resource"]) for record in told] == [("add", "address"), ("add", "taprio")]
    assert daemon.records("show") == []
    assert daemon.records("apply", "-", text=STREAMS) == told
    assert [record["state"] for record in daemon.records("show")] == ["ok"] * 3
    assert daemon.records("info")[0]["applied"] == 2
    assert len(daemon.records("clear")) == 2
    assert "192.0.2.1" not in sh("ip addr show dev eth0")


def test_what_is_refused_is_wrong_usage(daemon: Daemon) -> None:
    done = daemon.ask("apply", "-", text=STREAMS.replace("eth0", "eth7"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no interface eth7" in done.stderr
    done = daemon.ask("apply", "-", text=STREAMS.replace("open = [0, 1]", "open = [3]"))
    assert done.returncode == 2
    assert "stdin:" in done.stderr
    assert "traffic class 3" in done.stderr
    assert daemon.records("info")[0]["refused"] == 2


def test_rubbish_is_answered_with_an_error(daemon: Daemon) -> None:
    for params in ({}, {"text": 5}, {"text": "", "name": []}, {"text": "", "dry_run": "yes"}):
        with pytest.raises(rpc.RpcError) as caught:
            rpc.call(daemon.socket, {"method": "apply", "params": params})
        assert caught.value.code == "bad-request"
    with pytest.raises(rpc.RpcError) as caught:
        rpc.call(f"{daemon.socket}.status", {"method": "apply", "params": {"text": STREAMS}})
    assert caught.value.code == "unknown-method"
    assert daemon.records("show") == []


def test_what_happens_is_told(daemon: Daemon) -> None:
    daemon.records("apply", "-", text=STREAMS)
    command = [PROGRAM, "watch", "--socket", str(daemon.socket), "--recent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None

        def until(**wanted: Any) -> dict[str, Any]:
            assert watching.stdout is not None
            for line in watching.stdout:
                record: dict[str, Any] = json.loads(line)
                if wanted.items() <= record.items():
                    return record
            raise AssertionError(f"{wanted} did not come; {daemon.said()}")

        sh("ip link set far0 down")
        until(kind="link", event="carrier_lost", interface="eth0", up=True)
        sh("ip link set far0 up")
        until(kind="link", event="carrier", interface="eth0")
        sh("ip link set far0 down; ip link set far0 name far9; ip link set far9 up")
        until(kind="link", event="renamed", interface="far9", was="far0")
        sh("tc qdisc del dev eth0 root")
        until(kind="drift", resource="taprio", name="eth0", state="missing")
        sh("ip link add gone type dummy && ip link del gone")
        until(kind="link", event="added", interface="gone")
        until(kind="link", event="removed", interface="gone")
        watching.terminate()


def test_drops_are_told(daemon: Daemon) -> None:
    closed = STREAMS.replace("open = [0, 1]", "open = []")
    daemon.records("apply", "-", text=closed)
    wait_until(lambda: "schedule" in sh("tc -j qdisc show dev eth0 root"), "the list runs")
    sh("ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent")
    _flood()
    wait_until(lambda: any(r["kind"] == "drops" and r["packets"] > 0 for r in _recent(daemon)), "drops are told")


def _flood() -> None:
    """More than the queues behind closed gates hold."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
        for _ in range(4000):
            try:
                sock.sendto(b"x" * 64, socket.MSG_DONTWAIT, ("192.0.2.2", 9))
            except OSError:  # the socket's own buffer is full, or the queue
                continue


def _recent(daemon: Daemon) -> list[dict[str, Any]]:
    found = []
    for record in rpc.stream(f"{daemon.socket}.status", {"method": "events", "params": {"recent": True}}, timeout=15):
        if record["kind"] == "idle":
            break
        found.append(record)
        if record["kind"] == "drops":
            break
    return found


def test_at_its_end_what_was_applied_stays_and_the_next_knows_of_it(daemon: Daemon, tmp_path: Path) -> None:
    daemon.records("apply", "-", text=STREAMS)
    assert daemon.end() == 0
    assert not daemon.socket.exists()
    assert "taprio" in sh("tc qdisc show dev eth0")
    sh("tc qdisc del dev eth0 root")
    following = Daemon(tmp_path)
    assert [record["state"] for record in following.records("show")] == ["ok"] * 3
    assert len(following.records("clear")) == 2
    assert following.end() == 0


def test_a_killed_one_leaves_nothing_that_needs_a_hand(daemon: Daemon, tmp_path: Path) -> None:
    daemon.records("apply", "-", text=STREAMS)
    daemon.end(signal.SIGKILL)
    following = Daemon(tmp_path)
    assert [record["state"] for record in following.records("show")] == ["ok"] * 3
    assert following.end() == 0


def test_a_second_one_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    command = [PROGRAM, "run", "--socket", str(daemon.socket), "--state", str(tmp_path / "other.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"another tsn-agent (pid {daemon.process.pid}) serves this socket" in done.stderr


def test_the_file_is_applied_at_start_and_again_at_sighup(tmp_path: Path) -> None:
    file = tmp_path / "streams.toml"
    file.write_text(STREAMS)
    daemon = Daemon(tmp_path, "--streams", str(file))
    assert [record["state"] for record in daemon.records("show")] == ["ok"] * 3
    file.write_text(STREAMS.replace("192.0.2.1", "198.51.100.1"))
    os.kill(daemon.process.pid, signal.SIGHUP)
    wait_until(lambda: "198.51.100.1" in sh("ip addr show dev eth0"), "the file's second edition")
    file.write_text("nonsense")
    os.kill(daemon.process.pid, signal.SIGHUP)
    wait_until(lambda: "not reloaded: " in daemon.said(), "the refusal")
    assert "198.51.100.1" in sh("ip addr show dev eth0")
    assert daemon.end() == 0


def test_a_file_that_cannot_work_keeps_it_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "streams.toml"
    file.write_text(STREAMS.replace("eth0", "eth7"))
    daemon = Daemon(tmp_path, "--streams", str(file))
    assert daemon.process.wait(30) == 2
    assert "there is no interface eth7" in daemon.said()


def test_capabilities(daemon: Daemon) -> None:
    kernel, interface = (json.loads(line) for line in sh(f"{PROGRAM} capabilities eth0").splitlines())
    assert kernel["kind"] == "kernel"
    assert all(kernel[name] for name in ("vlan", "taprio", "taprio_txtime_assist", "etf", "mqprio", "cbs"))
    assert (interface["name"], interface["tx_queues"], interface["driver"]) == ("eth0", 4, "veth")
    assert "software-transmit" in interface["timestamps"]
    answer = rpc.call(f"{daemon.socket}.status", {"method": "capabilities", "params": {"interfaces": ["eth0"]}})
    assert answer == [kernel, interface]


NEED = ("--destination", "192.0.2.2", "--period", "1ms", "--size", "100", "--priority", "5")
WINDOWS = STREAMS.replace("open = [0, 1]\ninterval_ns = 1_000_000", "open = [1]\ninterval_ns = 1000") + (
    "[[schedules.entries]]\nopen = [0]\ninterval_ns = 999_000\n[[schedules.launch]]\ntraffic_class = 1\n"
)


def test_streams_get_places_beside_each_other(daemon: Daemon) -> None:
    daemon.records("apply", "-", text=WINDOWS)
    (one,) = daemon.records("request", "one", *NEED)
    # 100 bytes of payload, 28 of UDP and IPv4, 14 of Ethernet, 24 around a frame, at the 10 Gb/s that veth tells
    assert (one["via"], one["traffic_class"], one["offset_ns"], one["length_ns"]) == ("eth0", 1, 0, 133)
    assert (one["launch_time"], one["delta_ns"], one["pcp"]) == (True, 200_000, None)
    assert (one["first_launch_ns"] - one["base_time_ns"]) % 1_000_000 == 0
    places = [daemon.records("request", f"s{n}", *NEED)[0]["offset_ns"] for n in range(6)]
    assert places == [133 * n for n in range(1, 7)]
    done = daemon.ask("request", "late", *NEED)
    assert done.returncode == 2
    assert "no room: every place of 133 ns" in done.stderr
    daemon.records("release", "s2")
    assert daemon.records("request", "late", *NEED)[0]["offset_ns"] == 133 * 3
    assert daemon.records("request", "late", *NEED)[0]["offset_ns"] == 133 * 3  # of the same name: replaced
    assert {record["stream"] for record in daemon.records("streams")} == {"one", "s0", "s1", "s3", "s4", "s5", "late"}


def test_places_outlive_the_daemon_and_follow_the_schedule(daemon: Daemon, tmp_path: Path) -> None:
    daemon.records("apply", "-", text=WINDOWS)
    before = daemon.records("request", "one", *NEED)
    daemon.end(signal.SIGKILL)
    following = Daemon(tmp_path)
    assert [record["offset_ns"] for record in following.records("streams")] == [before[0]["offset_ns"]]
    turned = WINDOWS.replace("open = [1]", "open = [9]").replace("open = [0]", "open = [1]").replace("[9]", "[0]")
    following.records("apply", "-", text=turned)
    assert [record["offset_ns"] for record in following.records("streams")] == [1000]
    following.records("apply", "-", text=STREAMS.split("[[schedules]]")[0])
    assert following.records("streams") == []
    events = rpc.stream(f"{following.socket}.status", {"method": "events", "params": {"recent": True}})
    told = [next(record for record in events if record["kind"] == "stream") for _ in range(2)]
    assert [(record["event"], record["stream"]) for record in told] == [("moved", "one"), ("lost", "one")]
    assert "has no schedule" in told[1]["why"]
    assert following.end() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--period", "1.5ms"), "period: found 1500000 ns, accepted a multiple or a divisor"),
        (("--size", "2000"), "size: found 2000 bytes, accepted 1472: MTU of eth0 is 1500"),
        (("--size", "0"), "size_bytes: found 0, accepted 1 to 65507"),
        (("--destination", "192.0.2"), "destination: found '192.0.2', accepted an IPv4 or IPv6 address"),
        (("--destination", "10.9.9.9"), "10.9.9.9: no route leads there"),
        (("--destination", "127.0.0.1"), "127.0.0.1 is reached by lo, which has no schedule"),
        (("--deadline", "100"), "no window: with a period of 1000000 ns and the deadline of 100 ns"),
        (("--interface", "eth7"), "there is no interface eth7"),
    ],
)
def test_why_a_stream_gets_no_place(daemon: Daemon, changes: tuple[str, str], words: str) -> None:
    daemon.records("apply", "-", text=WINDOWS)
    done = daemon.ask("request", "one", *NEED, *changes)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert daemon.records("streams") == []


def test_a_talker_is_ordered_to_another_way(daemon: Daemon) -> None:
    sh("ip link add eth1 type veth peer name far1; ip link set far1 up; ip link set eth1 up")
    try:
        ways = (
            '[[streams]]\nname = "axis"\n[[streams.paths]]\ninterface = "eth0"\n[[streams.paths]]\ninterface = "eth1"\n'
        )
        assert daemon.ask("apply", "-", text=STREAMS + ways).returncode == 0
        question = {"method": "attach", "params": {"stream": "axis", "role": "talker"}}
        orders = rpc.stream(daemon.socket, question, timeout=15)
        idle, start = next(orders), next(orders)
        assert (idle["order"], start["order"], start["interface"]) == ("idle", "start", "eth0")
        assert start["base_time_ns"] % 1_000_000 == 0
        sh("ip link set far0 down")
        assert [next(orders), next(orders)] == [{"order": "stop"}, {"order": "start", "interface": "eth1"}]
        rpc.call(daemon.socket, {"method": "report", "params": {"stream": "axis", "kind": "launch-missed", "count": 2}})
        (path,) = daemon.records("paths")
        assert (path["interface"], path["usable"], path["talkers"]) == ("eth1", [False, True], 1)
        kinds = {"link-down", "launch-missed"}
        for record in rpc.stream(
            f"{daemon.socket}.status", {"method": "events", "params": {"recent": True}}, timeout=15
        ):
            kinds.discard(record.get("alarm", ""))
            if not kinds:
                break
        for wrong in ({"stream": 1, "role": "talker"}, {"stream": "axis", "role": "boss"}):
            with pytest.raises(rpc.RpcError) as caught:
                next(rpc.stream(daemon.socket, {"method": "attach", "params": wrong}, timeout=15))
            assert caught.value.code == "bad-request"
        sh("ip link set far0 up")
        daemon.records("show")  # one thread does it, and has written down the way before
        daemon.process.kill()
        daemon.process.wait()
        again = Daemon(daemon.folder)
        try:
            orders = rpc.stream(daemon.socket, question, timeout=15)
            assert [next(orders), next(orders)] == [{"order": "idle"}, {"order": "start", "interface": "eth1"}]
        finally:
            assert again.end() == 0
    finally:
        sh("ip link del eth1")
