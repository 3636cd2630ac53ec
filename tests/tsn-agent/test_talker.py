# SPDX-License-Identifier: Apache-2.0
"""tsn-talker as a person runs it: on loopback, and in namespaces for raw Ethernet."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.testbed.network import Network
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PERIOD_NS: Final = 1_000_000
BIN: Final = Path(sys.executable).parent
HEADER_FIELDS: Final = ("magic", "version", "flags", "stream", "number", "launch_ns", "send_ns")


@pytest.fixture
def inbox(traffic: Any) -> Iterator[socket.socket]:
    """A plain socket at the talker's destination."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", traffic.port))
        opened.settimeout(20)
        yield opened


def decoded(data: bytes) -> dict[str, int]:
    import struct

    return dict(zip(HEADER_FIELDS, struct.unpack("!HBBIQQQ", data[:32]), strict=True))


def test_packets_are_as_documented(traffic: Any, inbox: socket.socket) -> None:
    talker = traffic.talk("--count", 200, "--size", 100, "--id", 77, "--period", "2ms", "--offset", "300us")
    assert talker.end() == 0
    final = talker.final()
    assert final["sent"] + final["skipped"] + final["failed"] == 200
    packets = []
    for _ in range(final["sent"]):
        data = inbox.recv(2048)
        assert len(data) == 100
        assert not any(data[32:])
        packets.append(decoded(data))
    for sent in packets:
        assert (sent["magic"], sent["version"], sent["flags"], sent["stream"]) == (0x5154, 1, 0, 77)
        assert sent["launch_ns"] % (2 * PERIOD_NS) == 300_000
        assert sent["launch_ns"] - packets[0]["launch_ns"] == (sent["number"] - packets[0]["number"]) * 2 * PERIOD_NS
        assert sent["send_ns"] >= sent["launch_ns"]


def test_periods_that_were_slept_through_are_numbered_and_counted(traffic: Any, inbox: socket.socket) -> None:
    talker = traffic.talk()
    last = decoded(inbox.recv(2048))
    talker.process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{talker.process.pid}/task")
    wait_until(lambda: all(") T " in (task / "stat").read_text() for task in tasks.iterdir()), "the stop")
    inbox.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            last = decoded(inbox.recv(2048))
    resume_ns = last["launch_ns"] + 100 * PERIOD_NS
    wait_until(lambda: time.clock_gettime_ns(time.CLOCK_TAI) > resume_ns, "a hundred periods")
    inbox.settimeout(20)
    talker.process.send_signal(signal.SIGCONT)
    following = decoded(inbox.recv(2048))
    skipped = talker.wait_for("error", reason="skipped", seq=last["number"] + 1)
    assert skipped["count"] == following["number"] - last["number"] - 1 >= 99
    # it is the newest one of those whose instant had passed
    assert 0 <= following["send_ns"] - following["launch_ns"] < PERIOD_NS


def test_several_streams_leave_in_the_order_of_their_instants(
    traffic: Any, inbox: socket.socket, tmp_path: Path
) -> None:
    config = tmp_path / "streams.toml"
    config.write_text(
        "".join(
            f'[[streams]]\nname = "s{number}"\nid = {number}\ndestination = "127.0.0.1"\nport = {traffic.port}\n'
            f'period = "5ms"\noffset = "{number}ms"\ncount = 40\n'
            for number in (3, 1, 2)
        )
    )
    talker = traffic.start("tsn-talker", "--config", config)
    assert talker.end() == 0
    sent = sum(record["sent"] for record in talker.of("talker", final=True))
    assert {record["stream"] for record in talker.of("talker", final=True)} == {"s1", "s2", "s3"}
    packets = [decoded(inbox.recv(2048)) for _ in range(sent)]
    assert {each["launch_ns"] % 5_000_000 // PERIOD_NS == each["stream"] for each in packets} == {True}
    assert [each["send_ns"] for each in packets] == sorted(each["send_ns"] for each in packets)


def test_a_base_time_that_has_passed_is_advanced_by_whole_periods(traffic: Any, inbox: socket.socket) -> None:
    traffic.talk("--base-time", 1_000_000_123, "--period", "10ms")
    first = decoded(inbox.recv(2048))
    assert first["launch_ns"] % 10_000_000 == 1_000_000_123 % 10_000_000


def test_a_base_time_ahead_is_waited_for(traffic: Any, inbox: socket.socket) -> None:
    base = time.clock_gettime_ns(time.CLOCK_TAI) + 2_000_000_000
    traffic.talk("--base-time", base)
    first = decoded(inbox.recv(2048))
    assert first["launch_ns"] == base + first["number"] * PERIOD_NS
    assert first["send_ns"] >= base


def test_ipv6(traffic: Any) -> None:
    listener = traffic.listen()
    traffic.finish(traffic.talk("--count", 50, destination="::1"), listener)


def test_nobody_listens_and_the_talker_goes_on(traffic: Any) -> None:
    talker = traffic.talk("--count", 50)
    assert talker.end() == 0
    final = talker.final()
    assert final["sent"] + final["skipped"] == 50
    assert final["failed"] == 0
    assert final["unreachable"] > 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_counters(traffic: Any, inbox: socket.socket, number: int, status: int) -> None:
    talker = traffic.talk()
    inbox.recv(2048)
    assert talker.end(number) == status
    assert talker.final()["sent"] >= 1
    assert talker.of("summary", metric="lateness")


def test_transmit_times(traffic: Any, inbox: socket.socket) -> None:
    talker = traffic.talk("--count", 20, "--transmit-times")
    assert talker.end() == 0
    found = talker.of("transmit")
    assert len(found) == talker.final()["sent"]
    assert {record["timestamp"] for record in found} == {"software"}
    assert all(record["late_ns"] >= 0 for record in found)


def complaint(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [BIN / "tsn-talker", *map(str, arguments)], capture_output=True, text=True, timeout=20, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "destination: found nothing, accepted an IPv4, IPv6 or MAC address"),
        (("--destination", "host"), 2, "option --destination: found 'host', accepted an IPv4, IPv6 or MAC address"),
        (("--destination", "::1", "--size", "31"), 2, "option --size: found '31', accepted an integer from 32 to"),
        (("--destination", "::1", "--period", "0"), 2, "option --period: found '0', accepted a time such as"),
        (("--destination", "::1", "--period", "-1ms"), 2, "option --period: found '-1ms', accepted a time such as"),
        (("--destination", "02:00:00:00:00:01"), 2, "interface: found nothing"),
        (("--destination", "fe80::1"), 2, "interface: found nothing"),
        (("--destination", "fe80::1%lo"), 2, "the interface of a link-local one is an option of its own"),
        (("--destination", "::1", "--hold"), 2, "hold: found without agent"),
        (("--destination", "::1", "--interface", "nope0"), 1, "no interface 'nope0', accepted lo"),
    ],
)
def test_what_cannot_be_is_said(arguments: tuple[object, ...], status: int, words: str) -> None:
    code, said = complaint(*arguments)
    assert code == status
    assert words in said


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("missing", "arguments", "status", "words"),
    [
        (
            "-net_admin",
            ("--destination", "::1", "--launch-time"),
            1,
            "CAP_NET_ADMIN (launch times, priorities above 6)",
        ),
        ("-net_admin,-net_raw", ("--destination", "::1", "--priority", "7"), 1, "CAP_NET_ADMIN (launch times, prio"),
        ("-net_raw", ("--destination", "02:00:00:00:00:01", "--interface", "lo"), 1, "CAP_NET_RAW (raw Ethernet) is"),
        ("-sys_nice", ("--destination", "::1", "--count", "1", "--scheduling", "fifo"), 0, "goes on without fifo 80: "),
    ],
)
def test_a_missing_privilege_is_said(missing: str, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = subprocess.run(
        ["setpriv", f"--bounding-set={missing}", "prlimit", "--rtprio=0", BIN / "tsn-talker", *arguments],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert words in done.stderr


@pytest.mark.needs_root
def test_launch_times_that_nobody_keeps_are_said() -> None:
    code, said = complaint("--destination", "127.0.0.1", "--interface", "lo", "--launch-time", "--count", 1)
    assert code == 0
    assert "warning: stream stream: lo has no etf: packets leave when they are sent, 500000 ns before" in said


def test_a_faulty_file_is_named_with_line_and_key(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[streams]]\nname = "a"\ndestination = "::1"\n\n[[streams]]\nname = "a"\nsize = 8\n')
    code, said = complaint("--config", config, "--check")
    assert code == 2
    assert f"{config}:7: streams[1].size: found 8, accepted an integer from 32 to 65_507" in said
    config.write_text('period = "2ms"\n[[streams]]\ndestination = "::1"\n')
    assert "period: found beside [[streams]]" in complaint("--config", config, "--check")[1]
    config.write_text('[[streams]]\ndestination = "::1"\n[[streams]]\nname="b"\ndestination = "::1"\n')
    assert "streams[1].id: found 1 a second time" in complaint("--config", config, "--check")[1]


def test_bounds_in_both_languages() -> None:
    from tsn_agent import traffic_settings
    from tsn_agent._traffic import lib

    assert lib.QOS_TALKER_STREAMS_MAX == lib.QOS_LISTENER_STREAMS_MAX == traffic_settings.MAX_STREAMS
    assert lib.QOS_LISTENER_SOCKETS_MAX >= traffic_settings.MAX_STREAMS
    assert lib.QOS_PACKET_SIZE == traffic_settings.HEADER_BYTES
    assert lib.QOS_TALKER_PAYLOAD_MAX == 65507


@pytest.mark.needs_root
@pytest.mark.needs_netns
@pytest.mark.parametrize("group", ["239.1.2.3", "ff15::123"])
def test_a_multicast_group(traffic: Any, group: str) -> None:
    with Network() as network:
        here, there = network.host("talker"), network.host("listener")
        port, other = network.link(here, there)
        port.add("10.0.0.1/24", "fd00::1/64")
        other.add("10.0.0.2/24", "fd00::2/64")
        listener = traffic.start(*in_host(there, "tsn-listener"), "--address", group, "--interface", other.name,
                                 "--interval", "20ms")  # fmt: skip
        listener.wait_for("listener")
        talker = traffic.start(*in_host(here, "tsn-talker"), "--destination", group, "--interface", port.name,
                               "--count", 50)  # fmt: skip
        traffic.finish(talker, listener)


@pytest.mark.needs_root
@pytest.mark.needs_netns
class TestEthernet:
    @pytest.mark.parametrize("vlan", [0, 5])
    def test_raw_frames_reach_the_listener(self, traffic: Any, vlan: int) -> None:
        with Network() as network:
            here, there = network.host("talker"), network.host("listener")
            port, other = network.link(here, there)
            mac = re.findall(r"link/ether (\S+)", there.ip("link", "show", other.name))[0]
            listener = traffic.start(*in_host(there, "tsn-listener"), "--ethernet", "--interface", other.name,
                                     "--interval", "20ms")  # fmt: skip
            listener.wait_for("listener")
            talker = traffic.start(*in_host(here, "tsn-talker"), "--destination", mac, "--interface", port.name,
                                   "--vlan", vlan, "--count", 50, "--priority", 3)  # fmt: skip
            traffic.finish(talker, listener)

    def test_an_interface_that_goes_down_is_reported(self, traffic: Any) -> None:
        with Network() as network:
            here, there = network.host("talker"), network.host("listener")
            port, _ = network.link(here, there)
            talker = traffic.start(*in_host(here, "tsn-talker"), "--destination", "02:00:00:00:00:01", "--interface",
                                   port.name, "--interval", "20ms")  # fmt: skip
            talker.wait_for("talker")
            port.down()
            talker.wait_for("error", reason="send-failed", error="ENETDOWN")
            assert talker.end(signal.SIGTERM) == 0


def in_host(host: Any, name: str) -> list[str]:
    """Words that run a command of the family in a host."""
    words: list[str] = host.words(BIN / name)
    return words
