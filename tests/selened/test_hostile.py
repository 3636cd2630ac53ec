# SPDX-License-Identifier: Apache-2.0
"""A local client of another user that means harm (hostile/hostile.c), while others work.

On two hosts (two daemons over loopback) clients send and receive all the time, between the hosts and through shared
memory. The offender may connect, as a member of the group would. Whatever it does: the others lose nothing, both
daemons are the same processes as before, it is cut off or refused with a reason and a count, and when it is gone every
buffer and every descriptor is accounted for.

`QOS_SEED` chooses what is done at random.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.selened.conftest import Daemon, connected, memory
from tests.selened.test_kills import SEED, System
from tests.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE: Final = Path(__file__).resolve().parents[2] / "build/tests/hostile"
OFFENDER: Final = 64123  # a user of its own, whose sessions share memory
STRANGER: Final = 65534  # stands for users that are not known: each of its sessions is a user of its own
TIME_MS: Final = 1200
GROWTH_BYTES: Final = 24 << 20  # of a daemon, from before the first offender until after any

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(120)]


class Besieged(System):
    """Both hosts with their steady clients, and an offender's view of the left one."""

    def __init__(self, hosts: list[Any]) -> None:
        super().__init__(hosts)
        self.host = hosts[0]
        os.chown(self.host.path, -1, OFFENDER)
        self.processes = self._pids()
        # Without what they share with files, their clients' pools among them.
        self.before = [memory(pid, "RssAnon") for pid in self.processes]

    def _pids(self) -> list[int]:
        return [self.host.process.pid, self.host.datapath_pid()]

    def attack(self, behaviour: str, user: int = OFFENDER, seed: int = SEED) -> subprocess.Popen[str]:
        os.chown(self.host.path, -1, user)
        return subprocess.Popen(
            [HOSTILE, str(user), self.host.path, behaviour, str(seed), str(TIME_MS)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def unharmed(self) -> None:
        """When the offender is gone."""
        assert self._pids() == self.processes
        self.wait_for_flow()
        self.settle()
        self.nothing_went_wrong()
        self.no_descriptors_left()
        grown = [memory(pid, "RssAnon") - before for pid, before in zip(self.processes, self.before, strict=True)]
        assert max(grown) < GROWTH_BYTES, grown


def end(offender: subprocess.Popen[str]) -> dict[str, int]:
    """What an offender has to say at its end."""
    assert offender.stdout
    assert offender.stderr
    # It ends by itself, by its watchdog at last. communicate() would miss what a line that was read has brought along.
    with offender:
        said, complaints = offender.stdout.read(), offender.stderr.read()
    assert offender.returncode == 0, complaints
    summary: dict[str, int] = json.loads(said.splitlines()[-1])
    return summary


@pytest.fixture(scope="module")
def besieged() -> Iterator[Besieged]:
    # In a folder that another user may pass, which pytest's are not.
    folder = Path(tempfile.mkdtemp(prefix="selened-hostile-"))
    folder.chmod(0o711)
    ports = free_port(), free_port()
    hosts = []
    try:
        for name, mine, other in (("left", ports[0], ports[1]), ("right", ports[1], ports[0])):
            config = f'peer_hold_s = 60\n[[peers]]\naddress = "127.0.0.1"\nport = {other}\n'
            hosts.append(Daemon(folder, name, config, port=mine).start())
        for host in hosts:
            wait_until(lambda host=host: connected(host), "the connection of the peers")  # type: ignore[misc]
        system = Besieged(hosts)
        yield system
        system.close()
    finally:
        for host in hosts:
            host.close()
        shutil.rmtree(folder)


# What is done, by whom, what the log says of it, and which counter has it.
@pytest.mark.parametrize(
    ("behaviour", "user", "reason", "notice"),
    [
        ("words", OFFENDER, "", ""),  # what is written is often written over before it is seen
        ("indices", OFFENDER, "impossible index|half an entry", "sessions_cut_off"),
        ("entries", STRANGER, "malformed entries", "sessions_cut_off"),
        ("returns", OFFENDER, "gave back a slice that it does not hold", "sessions_cut_off"),
        ("wakes", OFFENDER, "", ""),  # a processor that is busy takes many for one
        ("noise", OFFENDER, "", ""),
        ("requests", OFFENDER, "accepted", "rubbish"),
        ("ids", OFFENDER, "no source or sink", "refused_requests"),
        ("memories", OFFENDER, "", ""),
        ("deafness", OFFENDER, "packets unread", "sessions_cut_off"),
        ("hoard", STRANGER, "", ""),
        ("connects", OFFENDER, "found a packet", "rubbish"),
    ],
)
def test_an_offender_harms_nobody(besieged: Besieged, behaviour: str, user: int, reason: str, notice: str) -> None:
    host = besieged.host
    count = host.notices().get(notice, 0)
    assert end(besieged.attack(behaviour, user))["opened"] > 0
    besieged.unharmed()
    if notice:
        wait_until(lambda: host.notices().get(notice, 0) > count, "the count, which the daemon hears of a moment later")
        assert re.search(reason, host.said())


def test_descriptors_whose_close_waits_are_no_trap(besieged: Besieged) -> None:
    """Each is followed by an ordinary greeting, which has to be answered."""
    assert end(besieged.attack("lingers"))["opened"] > 0
    besieged.unharmed()


def test_who_takes_all_he_can_leaves_enough_for_others(besieged: Besieged) -> None:
    host = besieged.host
    crowd = besieged.attack("crowd")
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == "full\n"
    with contextlib.closing(host.client()) as other:
        other.stream()
        assert other.source(1).id
    assert end(crowd)["refused"] > 0
    assert host.notices()["refused_sessions"] > 0
    assert host.notices()["refused_connections"] > 0
    besieged.unharmed()
    assert end(besieged.attack("greed"))["opened"] > 0
    besieged.unharmed()


def test_everything_at_random(besieged: Besieged) -> None:
    assert end(besieged.attack("random"))["opened"] > 0
    besieged.unharmed()


def test_ids_of_the_dead_are_not_given_to_others(besieged: Besieged) -> None:
    """selened-dp dies, and somebody asks for the ids of those who are about to come back. Last: steady ones lose what
    was in flight."""
    host = besieged.host
    pid = host.datapath_pid()
    os.kill(pid, signal.SIGKILL)
    end(besieged.attack("ids"))
    wait_until(lambda: host.datapath_pid() not in (0, pid), "another datapath process")
    wait_until(lambda: all(client.stats()["connected"] for client in besieged.steady), "the clients to be back")
    besieged.wait_for_flow()
    besieged.settle()
