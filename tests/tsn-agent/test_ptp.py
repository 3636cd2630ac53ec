# SPDX-License-Identifier: Apache-2.0
"""A real ptp4l against a real grandmaster, over a veth pair.

On the host it runs free, for all namespaces share the host's clock; so it measures, and never gets further than
UNCALIBRATED. That it gets to SLAVE is tested under the TSN kernel, whose clock is its own.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from tsn_agent.ptp import Judge, Ptp, PtpStatus
from tsn_agent.ptpconfig import PtpConfig, PtpLimits

from libqos.codec.ptpmgmt import TimeStatus
from libqos.errors import InputError
from tests.testbed import plugin
from tests.testbed.network import Host, Network
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Prints each status as a line of JSON.
AGENT: Final = """
import asyncio, dataclasses, json, signal, sys
from pathlib import Path
from tsn_agent.ptp import Ptp
from tsn_agent.ptpconfig import PtpConfig, PtpLimits
async def main():
    config, limits = (json.loads(text) for text in sys.argv[2:])
    config["interfaces"] = tuple(config["interfaces"])
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    async with Ptp(PtpConfig(**config), Path(sys.argv[1]), limits=PtpLimits(**limits)) as ptp:
        async for status in ptp.status.changes():
            print(json.dumps({**dataclasses.asdict(status), "pid": ptp.ptp4l.pid}), flush=True)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    pass
"""
QUICK: Final = {"log_sync_interval": -3, "log_announce_interval": -2, "log_delay_interval": -3}
COMMON: Final = {
    "interfaces": ["eth0"], "time_stamping": "software", "proportional": 0.7, "integral": 0.3,
    "free_running": not plugin.is_inside(), **QUICK,
}  # fmt: skip
LIMITS: Final = {"within_ns": 1_000_000, "beyond_ns": 2_000_000, "for_s": 1.0, "poll_s": 0.1}


class Agent:
    """One process with a Ptp in it, in a namespace."""

    def __init__(self, host: Host, directory: Path, config: dict[str, Any], limits: dict[str, Any]) -> None:
        directory.mkdir(exist_ok=True)
        self.output = directory / "statuses"
        self.directory = directory
        words = (sys.executable, "-P", "-c", AGENT, directory, json.dumps(config), json.dumps(limits))
        with self.output.open("w") as file:
            self.process = host.start(*words, stdout=file)

    def now(self) -> dict[str, Any]:
        *lines, _ = ["", *self.output.read_text().split("\n")]  # the last one is not at its end
        return json.loads(lines[-1]) if lines[-1] else {**asdict(PtpStatus()), "pid": None}

    def reach(self, what: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait for a status."""
        status: dict[str, Any] = {}

        def met() -> object:
            status.update(self.now())
            assert self.process.poll() is None
            return condition(status)

        wait_until(met, what)
        return status

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


class Bed:
    """A device and a grandmaster that are joined."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.directory = directory
        self.device, self.master = network.host("device"), network.host("master")
        network.link(self.device, self.master)
        self.agents: list[Agent] = []

    def agent(self, limits: dict[str, Any] | None = None, **config: Any) -> Agent:
        return self._start(
            self.device, "device", {**COMMON, "slave_only": True, **config}, {**LIMITS, **(limits or {})}
        )

    def grandmaster(self) -> Agent:
        agent = self._start(self.master, "master", {**COMMON, "free_running": True, "priority1": 1}, LIMITS)
        agent.reach("the grandmaster's role", lambda status: status["ports"] == ["MASTER"])
        return agent

    def _start(self, host: Host, name: str, config: dict[str, Any], limits: dict[str, Any]) -> Agent:
        self.agents.append(Agent(host, self.directory / name, config, limits))
        return self.agents[-1]

    def close(self) -> None:
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.end(signal.SIGKILL)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    with Network() as network, contextlib.closing(Bed(network, tmp_path)) as made:
        yield made


def alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout.startswith("Z")


@pytest.mark.tsn_kernel
@pytest.mark.needs_linuxptp
def test_synchronised_while_there_is_a_grandmaster(bed: Bed) -> None:
    agent = bed.agent()
    assert not agent.reach("a port", lambda status: status["ports"])["synchronised"]
    for _ in range(2):
        grandmaster = bed.grandmaster()
        status = agent.reach("synchronisation", lambda status: status["synchronised"])
        assert status["ports"] == ["SLAVE"]
        assert abs(status["offset_ns"]) <= LIMITS["beyond_ns"]
        assert status["steps_removed"] == 1
        assert status["grandmaster"] == grandmaster.now()["grandmaster"]
        grandmaster.end(signal.SIGKILL)
        status = agent.reach("its end", lambda status: not status["synchronised"])
        agent.reach("that there is no grandmaster", lambda status: status["offset_ns"] is None)


@pytest.mark.tsn_kernel
@pytest.mark.needs_linuxptp
def test_phc2sys_takes_its_command_line(bed: Bed, tmp_path: Path) -> None:
    config = replace(CONFIG, system_clock=True, time_stamping="hardware")
    done = subprocess.run(
        bed.device.words(*config.phc2sys(tmp_path / "s")), capture_output=True, text=True, timeout=20, check=False
    )
    assert "does not have a PHC" in done.stdout + done.stderr


@pytest.mark.needs_netns
@pytest.mark.needs_linuxptp
class TestFreeRunning:
    def test_it_measures(self, bed: Bed) -> None:
        grandmaster, agent = bed.grandmaster(), bed.agent()
        status = agent.reach("an offset", lambda status: status["offset_ns"])
        assert status["ports"] == ["UNCALIBRATED"]
        assert status["grandmaster"] == grandmaster.now()["grandmaster"]
        assert not status["synchronised"]
        assert agent.end() == 0
        assert not alive(status["pid"])
        assert sorted(file.name for file in agent.directory.iterdir()) == ["ptp4l.conf", "statuses"]

    @pytest.mark.parametrize(
        ("number", "why"), [(signal.SIGKILL, "killed by signal 9"), (signal.SIGTERM, "exit status 0")]
    )
    def test_ptp4l_that_ends_is_started_again(self, bed: Bed, number: signal.Signals, why: str) -> None:
        agent = bed.agent()

        def started(times: int) -> dict[str, Any]:
            return agent.reach("ptp4l", lambda status: status["starts"] == times and status["ports"])

        for times in (1, 2):
            subprocess.run(["kill", f"-{number}", str(started(times)["pid"])], check=True)
        status = started(3)
        assert f"ptp4l ended ({why})" in status["last_error"]

    def test_ptp4l_that_hangs_is_started_again(self, bed: Bed) -> None:
        agent = bed.agent(limits={"answer_s": 0.2, "hung_s": 2.0})
        status = agent.reach("ptp4l", lambda status: status["ports"])
        subprocess.run(["kill", "-STOP", str(status["pid"])], check=True)
        agent.reach("ptp4l", lambda later: later["starts"] > status["starts"] and later["ports"])

    def test_ptp4l_dies_with_us(self, bed: Bed) -> None:
        agent = bed.agent()
        status = agent.reach("ptp4l", lambda status: status["ports"])
        assert alive(status["pid"])
        agent.end(signal.SIGKILL)
        wait_until(lambda: not alive(status["pid"]), "the end of ptp4l")

    def test_what_ptp4l_complains_of_is_told(self, bed: Bed) -> None:
        agent = bed.agent(interfaces=["eth7"])
        status = agent.reach("a complaint", lambda status: "No such device" in status["last_error"])
        assert status["last_error"].startswith("eth7: ptp4l ended (exit status")
        assert "No such device" in status["last_error"]
        assert not status["ports"]


# ---- Without linuxptp -----------------------------------------------------------------------------------------------


def seen(offset: int, ingress: int, present: bool = True) -> TimeStatus:
    return TimeStatus(offset, ingress, present, "fe52c5.fffe.f9b802")


class TestJudge:
    def judge(self, **limits: Any) -> Judge:
        return Judge(PtpLimits(within_ns=100, beyond_ns=200, for_s=2.0, stale_s=3.0, **limits))

    def test_it_takes_its_time(self) -> None:
        judge = self.judge()
        assert [judge.look(now, True, seen(-50, now)) for now in (1, 2, 3, 4)] == [False, False, True, True]

    def test_a_larger_offset_begins_anew(self) -> None:
        judge = self.judge()
        offsets = [50, 150, 50, 50, 50, 50]
        assert [judge.look(now, True, seen(offset, now)) for now, offset in enumerate(offsets, 1)] == [
            False, False, False, False, True, True,
        ]  # fmt: skip

    @pytest.mark.parametrize(("offset", "stays"), [(150, True), (-200, True), (201, False), (-201, False)])
    def test_it_ceases_later_than_it_begins(self, offset: int, stays: bool) -> None:
        judge = self.judge()
        assert [judge.look(now, True, seen(0, now)) for now in (1, 2, 3)][-1]
        assert judge.look(4, True, seen(offset, 4)) is stays

    @pytest.mark.parametrize(("slave", "time"), [(False, seen(0, 4)), (True, None), (True, seen(0, 4, present=False))])
    def test_it_ceases_at_once(self, slave: bool, time: TimeStatus | None) -> None:
        judge = self.judge()
        assert [judge.look(now, True, seen(0, now)) for now in (1, 2, 3)][-1]
        assert not judge.look(4, slave, time)
        assert not judge.look(5, True, seen(0, 5))

    def test_an_offset_without_sync_grows_old(self) -> None:
        judge = self.judge()
        assert [judge.look(now, True, seen(0, 1)) for now in (1, 2, 3, 4, 5)] == [False, False, True, True, False]


CONFIG: Final = PtpConfig(interfaces=("eth0", "eth1"))


@pytest.mark.needs_linuxptp
def test_the_configuration(tmp_path: Path) -> None:
    config = replace(CONFIG, domain=24, transport="UDPv4", slave_only=True, transport_specific=1)
    lines = config.text(tmp_path / "ptp4l.sock").splitlines()
    assert lines[0] == "[global]"
    assert lines[-2:] == ["[eth0]", "[eth1]"]
    assert {f"uds_address {tmp_path}/ptp4l.sock", "domainNumber 24", "network_transport UDPv4", "slaveOnly 1"} <= {
        *lines
    }
    assert replace(CONFIG, system_clock=True).phc2sys(tmp_path / "s")[1:] == [
        "-s", "eth0", "-c", "CLOCK_REALTIME", "-w", "-m", "-q", "-l", "5", "-z", f"{tmp_path}/s", "-n", "0",
        "--transportSpecific=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"interfaces": ()}, "interfaces: found none"),
        ({"interfaces": ("eth0]\nuds_address /x",)}, "interfaces: found"),
        ({"interfaces": ("x" * 16,)}, "interfaces: found"),
        ({"transport": "L3"}, "transport: found 'L3', accepted L2 \\| UDPv4 \\| UDPv6"),
        ({"domain": 128}, "domain: found 128, accepted an integer from 0 to 127"),
        ({"integral": float("nan")}, "integral: found nan"),
        ({"system_clock": True, "time_stamping": "software"}, "system_clock: accepted with"),
    ],
)
def test_what_linuxptp_would_refuse(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        replace(CONFIG, **change)


def test_without_linuxptp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(InputError, match="ptp4l is not installed: apt-get install linuxptp"):
        Ptp(CONFIG, tmp_path)


def test_bounds_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match="beyond_ns: found 5, accepted within_ns"):
        PtpLimits(within_ns=10, beyond_ns=5)
