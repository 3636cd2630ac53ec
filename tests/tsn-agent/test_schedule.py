# SPDX-License-Identifier: Apache-2.0
"""Schedules as tsn-listener sees them, under the TSN kernel: gates by the times of arrival, launch times by the error
queue, and a stream through several switches."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.testbed.network import Network
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

WINDOW_NS: Final = 1_000_000
CYCLE_NS: Final = 2 * WINDOW_NS
PACKETS: Final = 2000
# Traffic class 1 (priority 3) has the first window of each cycle, class 0 the second.
SCHEDULE: Final[dict[str, Any]] = {
    "num_tc": 2, "map": [0, 0, 0, 1], "queues": [(1, 0), (1, 1)], "base_time": 0, "clockid": 11,
    "sched_entries": [(0b10, WINDOW_NS), (0b01, WINDOW_NS)],
}  # fmt: skip
DELTA_NS: Final = 200_000  # how long before its launch time etf hands a packet over
STREAMS: Final = {"first": 3, "second": 0}  # priority by the window that it has to come in


def streams(talk: bool) -> str:
    """Both streams send four times in each window, also where their gate is closed."""
    text = ""
    for number, (name, priority) in enumerate(STREAMS.items()):
        text += f'[[streams]]\nname = "{name}"\nid = {number}\nperiod = "250us"\n'
        if talk:
            text += f'destination = "10.0.0.2"\npriority = {priority}\noffset = "100us"\ncount = {PACKETS}\n'
        else:
            text += "silence = 0\n"
    return text


def inside(traffic: Any, folder: Path, *, spin: str) -> float:
    """The share of packets that arrive in the window of their class. All of them arrive."""
    for name in ("talk", "listen"):
        (folder / name).write_text(streams(talk=name == "talk"))
    with Network() as network:
        here, there = network.host("talker"), network.host("listener")
        port, other = network.link(here, there, queues=2)
        port.add("10.0.0.1/24")
        other.add("10.0.0.2/24")
        here.run("busybox", "ping", "-c", 1, "10.0.0.2")
        port.queueing("taprio", **SCHEDULE)
        listener = traffic.start(*there.words(traffic.bin / "tsn-listener"), "--config", folder / "listen",
                                 "--timeout", "3s", "--samples", "--interval", "20ms")  # fmt: skip
        listener.wait_for("listener")
        talker = traffic.start(*here.words(traffic.bin / "tsn-talker"), "--config", folder / "talk", "--spin", spin)
        assert (talker.end(), listener.end()) == (0, 0), (talker.errors, listener.errors)
    for name in STREAMS:
        (sent,) = talker.of("talker", stream=name, final=True)
        (received,) = listener.of("listener", stream=name, final=True)
        assert sent["sent"] + sent["skipped"] == PACKETS
        assert received["received"] == sent["sent"]
        assert received["timestamps"] == {"software": sent["sent"]}
    samples = listener.of("latency")
    right: int = sum(
        (sample["ts_ns"] % CYCLE_NS < WINDOW_NS) == (sample["stream"] == "first") for sample in samples
    )  # fmt: skip
    return right / len(samples)


@pytest.mark.tsn_kernel(simulated_time=True)
def test_every_packet_comes_in_the_window_of_its_class(traffic: Any, tmp_path: Path) -> None:
    assert inside(traffic, tmp_path, spin="0") == 1.0


@pytest.mark.tsn_kernel
def test_in_real_time_nearly_all_do(traffic: Any, tmp_path: Path) -> None:
    assert inside(traffic, tmp_path, spin="0") >= 0.95


@pytest.mark.tsn_kernel(simulated_time=True)
def test_silence_is_said_within_its_cycles_and_a_millisecond(traffic: Any) -> None:
    listener = traffic.listen("--samples", "--silence", 3)
    assert traffic.talk("--count", 20, "--spin", 0).end() == 0
    silent = listener.wait_for("sequence", event="silent")
    last = listener.of("latency")[-1]
    assert (last["seq"], silent["seq"]) == (19, 20)
    assert 3 * WINDOW_NS <= silent["ts_ns"] - last["ts_ns"] <= 4 * WINDOW_NS


@pytest.mark.tsn_kernel(simulated_time=True)
def test_what_a_bad_network_does_is_counted(traffic: Any) -> None:
    with Network() as network:
        here, there = network.host("talker"), network.host("listener")
        port, other = network.link(here, there)
        port.add("10.0.0.1/24")
        other.add("10.0.0.2/24")
        here.run("busybox", "ping", "-c", 1, "10.0.0.2")
        netem = ["netem", "loss", "5%", "duplicate", "5%", "delay", "3ms", "2ms"]
        here.run("tc", "qdisc", "add", "dev", port.name, "root", *netem)
        listener = traffic.start(*there.words(traffic.bin / "tsn-listener"), "--timeout", "3s", "--silence", 0)
        listener.wait_for("listener")
        talker = traffic.start(*here.words(traffic.bin / "tsn-talker"), "--destination", "10.0.0.2", "--count", PACKETS,
                               "--spin", 0)  # fmt: skip
        assert (talker.end(), listener.end()) == (0, 0)
        names, values = (line.split() for line in there.run("grep", "Udp:", "/proc/net/snmp").splitlines())
        arrived = int(values[names.index("InDatagrams")])
    final = listener.final()
    assert final["received"] + final["duplicated"] == arrived
    assert final["received"] + final["lost"] == final["accounted"] == final["newest_seq"] - final["first_seq"] + 1
    assert final["newest_seq"] <= PACKETS - 1
    assert final["on_time"] + final["late"] == final["received"]
    assert final["late"] == sum(final["late_by"])
    for what in ("lost", "duplicated", "reordered", "late"):
        assert final[what] > 0
        assert listener.of("sequence", event=what)


class Launches:
    """A talker with launch times, whose class has a queue with etf; a listener at the other end of the link."""

    count: Final = 200

    def __init__(self, traffic: Any, network: Network, root: str, delta_ns: int = DELTA_NS, **parameters: Any) -> None:
        here, there = network.host("talker"), network.host("listener")
        port, other = network.link(here, there, queues=2)
        port.add("10.0.0.1/24", "fd00::1/64")
        other.add("10.0.0.2/24", "fd00::2/64")
        for address in ("10.0.0.2", "fd00::2"):
            here.run("busybox", "ping", "-c", 1, address)
        port.queueing(root, num_tc=2, map=SCHEDULE["map"], queues=SCHEDULE["queues"], **parameters)
        port.queueing("etf", 0, parent="100:2", clockid=11, delta=delta_ns)
        self.listener = traffic.start(*there.words(traffic.bin / "tsn-listener"), "--samples", "--interval", "20ms",
                                      "--timeout", "5s", "--silence", 0)  # fmt: skip
        self.listener.wait_for("listener")
        self.talker_words = [*here.words(traffic.bin / "tsn-talker"), "--priority", 3, "--launch-time", "--count",
                             self.count, "--spin", 0]  # fmt: skip

    def talk(self, traffic: Any, destination: str, *options: object) -> dict[str, Any]:
        self.talker = traffic.start(*self.talker_words, "--destination", destination, *options)
        assert self.talker.end() == 0, self.talker.errors
        final: dict[str, Any] = self.talker.final()
        assert (final["sent"] + final["failed"], final["skipped"]) == (self.count, 0)
        return final

    def refused(self, reason: str, error: str) -> None:
        """Every packet has its record, and the listener none of them."""
        errors = self.talker.of("error", reason=reason, error=error)
        assert [record["seq"] for record in errors] == list(range(self.count))
        assert len({record["launch_ns"] for record in errors}) == self.count
        assert len(self.talker.of("error")) == self.count
        assert self.listener.end() == 0
        assert self.listener.final()["received"] == 0


@pytest.mark.tsn_kernel(simulated_time=True)
class TestLaunchTimes:
    @pytest.mark.parametrize("destination", ["10.0.0.2", "fd00::2"])
    def test_packets_leave_at_their_launch_time(self, traffic: Any, destination: str) -> None:
        with Network() as network:
            launches = Launches(traffic, network, "mqprio", hw=0)
            sent = launches.talk(traffic, destination, "--lead", "400us")
            assert (sent["missed"], sent["invalid"]) == (0, 0)
            assert launches.listener.end() == 0
        assert launches.listener.final()["received"] == launches.count
        # without a card that waits for the instant, etf hands them over up to delta before it
        for sample in launches.listener.of("latency"):
            assert -DELTA_NS <= sample["latency_ns"] <= 0

    @pytest.mark.parametrize("destination", ["10.0.0.2", "fd00::2"])
    def test_a_launch_time_that_has_passed_is_invalid(self, traffic: Any, destination: str) -> None:
        with Network() as network:
            launches = Launches(traffic, network, "mqprio", hw=0)
            sent = launches.talk(traffic, destination, "--lead", 0)
            assert sent["invalid"] == sent["failed"] == launches.count
            launches.refused("launch-invalid", "EINVAL")

    def test_a_launch_time_that_passes_in_the_queue_is_missed(self, traffic: Any) -> None:
        """A queue that begins with a packet at its launch time has it too late."""
        with Network() as network:
            launches = Launches(traffic, network, "mqprio", delta_ns=0, hw=0)
            sent = launches.talk(traffic, "10.0.0.2")
            assert sent["missed"] == sent["sent"] == launches.count
            launches.refused("launch-missed", "ECANCELED")

    def test_a_launch_time_outside_the_window_is_refused(self, traffic: Any) -> None:
        """Instants at 0.5 ms of each period of 2 ms, while the gate of the class opens at 1 ms."""
        with Network() as network:
            closed = [(0b01, WINDOW_NS), (0b10, WINDOW_NS)]
            launches = Launches(traffic, network, "taprio", base_time=0, clockid=11, sched_entries=closed)
            sent = launches.talk(traffic, "10.0.0.2", "--period", "2ms", "--offset", "500us")
            assert sent["failed"] == launches.count
            launches.refused("send-failed", "ENOBUFS")


AGENT: Final = """
[[interfaces]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[neighbours]]
interface = "eth0"
address = "10.0.0.2"
mac = "{mac}"
[[schedules]]
interface = "eth0"
traffic_classes = 2
pcp = [0, 0, 0, 1, 0, 0, 0, 0]
[[schedules.entries]]
open = [1]
interval_ns = 500_000
[[schedules.entries]]
open = [0]
interval_ns = 500_000
"""


@pytest.mark.tsn_kernel(simulated_time=True)
def test_gates_go_on_after_the_link_was_away(traffic: Any, tmp_path: Path) -> None:
    """The kernel alone lets them stand as they are for ever."""
    with Network() as network:
        here, there = network.host("talker"), network.host("listener")
        _, other = network.link(here, there, queues=2)
        other.add("10.0.0.2/24")
        file = tmp_path / "streams.toml"
        file.write_text(AGENT.format(mac=there.run("cat", "/sys/class/net/eth0/address").strip()))
        where = ("--socket", tmp_path / "a.sock", "--state", tmp_path / "a.db")
        daemon = traffic.start(*here.words(traffic.bin / "tsn-agent"), "run", "--streams", file, *where)
        wait_until((tmp_path / "a.sock").is_socket, "the daemon")
        listener = traffic.start(*there.words(traffic.bin / "tsn-listener"), "--period", "1ms", "--samples")
        listener.wait_for("listener")
        talker = traffic.start(*here.words(traffic.bin / "tsn-talker"), "--destination", "10.0.0.2", "--period", "1ms",
                               "--offset", "700us", "--priority", 3, "--spin", 0)  # fmt: skip
        listener.wait_for("latency")
        other.down()
        listener.wait_for("sequence", event="silent")
        other.up()
        listener.wait_for("sequence", event="resumed")
        seen = listener.of("latency")[-1]["seq"]
        listener.wait_for("latency", seq=seen + 100)
        assert (talker.end(signal.SIGTERM), listener.end(signal.SIGTERM), daemon.end(signal.SIGTERM)) == (0, 0, 0)
    samples = listener.of("latency")
    late = [sample for sample in samples if sample["ts_ns"] % 1_000_000 >= 500_000]
    assert late == []
    assert listener.final()["received"] == len(samples)


@pytest.mark.tsn_kernel
def test_without_the_daemon_it_is_shown_that_gates_stand_still(traffic: Any, tmp_path: Path) -> None:
    with Network() as network:
        here, there = network.host("talker"), network.host("listener")
        _, other = network.link(here, there, queues=2)
        file = tmp_path / "streams.toml"
        file.write_text(AGENT.format(mac=there.run("cat", "/sys/class/net/eth0/address").strip()))

        def agent(*words: object) -> list[dict[str, Any]]:
            command = traffic.start(*here.words(traffic.bin / "tsn-agent"), *words, "--state", tmp_path / "a.db")
            assert command.end() in (0, 1), command.errors
            return list(command.records)

        def standing() -> list[str]:
            (schedule,) = [record for record in agent("show") if record["resource"] == "taprio"]
            return list(schedule["differs"])

        agent("apply", file)
        assert (agent("apply", file), standing()) == ([], [])
        other.down()
        other.up()
        assert standing() == ["running"]
        assert [(change["action"], change["resource"]) for change in agent("apply", file)] == [("change", "taprio")]
        assert (agent("apply", file), standing()) == ([], [])
