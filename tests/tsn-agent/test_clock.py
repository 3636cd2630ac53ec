# SPDX-License-Identifier: Apache-2.0
"""The daemon with `[ptp]`: a real ptp4l against a real grandmaster. On the host it runs free: all share its clock."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from tsn_agent.ptpconfig import PtpConfig

from libqos import rpc
from tests.testbed import plugin
from tests.testbed.network import Network
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.testbed.network import Host

Record = dict[str, Any]

COMMON: Final[Record] = {
    "time_stamping": "software", "proportional": 0.7, "integral": 0.3, "free_running": not plugin.is_inside(),
    "log_sync_interval": -3, "log_announce_interval": -2, "log_delay_interval": -3,
}  # fmt: skip
DEVICE: Final[Record] = {
    **COMMON, "interfaces": ["eth0"], "slave_only": True,
    "within_ns": 1_000_000, "beyond_ns": 2_000_000, "for_s": 1.0,
}  # fmt: skip
PROGRAM: Final = f"{sys.prefix}/bin/tsn-agent"


class Bed:
    """A device with an agent, and what could be its grandmaster."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.folder, self.socket, self.log = folder, folder / "a.sock", folder / "log"
        self.device, self.master = network.host("device"), network.host("master")
        network.link(self.device, self.master)
        self.running: list[subprocess.Popen[str]] = []

    def grandmaster(self) -> subprocess.Popen[str]:
        (folder := self.folder / "master").mkdir(exist_ok=True)
        config = PtpConfig(**{**COMMON, "interfaces": ("eth0",), "free_running": True, "priority1": 1})
        (file := folder / "ptp4l.conf").write_text(config.text(folder / "ptp4l.sock"))
        return self._start(self.master, *config.ptp4l(file))

    def agent(self) -> subprocess.Popen[str]:
        lines = (f"{key} = {json.dumps(value)}" for key, value in DEVICE.items())
        (self.folder / "agent.toml").write_text("\n".join(["[ptp]", *lines]))
        started = self._start(
            self.device, PROGRAM, "run", "--config", self.folder / "agent.toml", "--socket", self.socket,
            "--state", self.folder / "a.db",
        )  # fmt: skip
        wait_until(lambda: started.poll() is not None or "ready at" in self.log.read_text(), "the agent's start")
        return started

    def ask(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, *map(str, words), "--socket", str(self.socket)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()

    def _start(self, host: Host, *words: object) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            self.running.append(host.start(*words, stdout=log, stderr=log))
        return self.running[-1]


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    with Network() as network:
        made = Bed(network, tmp_path)
        yield made
        made.close()


@pytest.mark.tsn_kernel
@pytest.mark.needs_linuxptp
def test_it_says_when_it_is_synchronised_and_when_no_longer(bed: Bed) -> None:
    agent = bed.agent()
    assert bed.ask("clock").returncode == 1
    grandmaster = bed.grandmaster()
    wait_until(lambda: bed.ask("clock").returncode == 0, "synchronisation")
    grandmaster.kill()
    wait_until(lambda: bed.ask("clock").returncode == 1, "its end")
    told = bed.ask("watch", "--recent", "--count", 2).stdout
    events = [json.loads(line) for line in told.splitlines()]
    assert [(event["kind"], event["event"]) for event in events] == [
        ("clock", "synchronised"), ("clock", "not_synchronised"),
    ]  # fmt: skip
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0, bed.log.read_text()


@pytest.mark.needs_netns
@pytest.mark.needs_linuxptp
def test_it_is_shown(bed: Bed) -> None:
    bed.grandmaster()
    agent = bed.agent()
    for record in rpc.stream(f"{bed.socket}.status", {"method": "follow_clock"}, timeout=20):
        if record["offset_ns"]:
            break
    assert (record["kind"], record["ports"], record["synchronised"]) == ("clock", ["UNCALIBRATED"], False)
    following = subprocess.Popen(
        [PROGRAM, "clock", "--follow", "--socket", str(bed.socket)], stdout=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    lines = [json.loads(following.stdout.readline()) for _ in range(2)]
    following.kill()
    following.wait()
    following.stdout.close()
    assert lines[0]["ts_ns"] < lines[1]["ts_ns"]
    assert json.loads(bed.ask("info").stdout)["clock"]["ports"] == ["UNCALIBRATED"]
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0, bed.log.read_text()


@pytest.mark.needs_netns
def test_without_linuxptp_it_does_not_start(tmp_path: Path) -> None:
    (file := tmp_path / "agent.toml").write_text('[ptp]\ninterfaces = ["eth0"]\n')
    hide = 'if path=$(command -v ptp4l); then mount --bind /dev/null "$path"; fi; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", PROGRAM, "run", "--config", str(file),
         "--socket", str(tmp_path / "a.sock"), "--state", str(tmp_path / "a.db")],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert "ptp4l is not installed: apt-get install linuxptp" in done.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('interfaces = ["a b"]', "agent.toml:1: ptp: interfaces: found 'a b', accepted the name of an interface"),
        ("domain = 128", "agent.toml:2: ptp.domain: found 128, accepted an integer from 0 to 127"),
        ("within_ns = 5000", "ptp: beyond_ns: found 2000, accepted within_ns (5000) or more"),
        ('interfaces = ["a"]\nsystem_clock = true\ntime_stamping = "software"', "ptp: system_clock: accepted with"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, text: str, why: str) -> None:
    (file := tmp_path / "agent.toml").write_text(f"[ptp]\n{text}\n")
    done = subprocess.run(
        [PROGRAM, "run", "--check", "--config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert why in done.stderr


def test_an_agent_without_a_clock_says_so(tmp_path: Path) -> None:
    words = ["--socket", str(tmp_path / "a.sock")]
    with subprocess.Popen([PROGRAM, "run", "--state", str(tmp_path / "a.db"), *words]) as agent:
        wait_until((tmp_path / "a.sock").exists, "the agent")
        for more in ([], ["--follow"]):
            done = subprocess.run([PROGRAM, "clock", *words, *more], capture_output=True, text=True, check=False)
            assert "this agent holds no clock: name interfaces in [ptp]" in done.stderr
        agent.terminate()
