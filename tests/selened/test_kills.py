# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any moment, under load: clients, selened, selened-dp.

Two hosts (two daemons over loopback), with clients that send and receive all the time: between the hosts directly and
relayed, and on one host through shared memory. After each kill they pause, and then every buffer of both hosts must be
accounted for, exactly: nothing referenced, nothing held, no edge, route or descriptor left over.

`QOS_KILLS=1000` is the number of clients that are killed and of changes of path, and a fifth of it that of kills of
each daemon process; the default is for every day.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from libqos.rpc import RpcError
from tests.selened.conftest import connected
from tests.waiting import TIMEOUT_S, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

STORM: Final = Path(__file__).resolve().parents[2] / "build/tests/storm"
KILLS: Final = int(os.environ.get("QOS_KILLS", "40"))
DAEMON_KILLS: Final = max(1, KILLS // 5)
CHANGES: Final = KILLS
SEED: Final = int(os.environ.get("QOS_SEED", "1"))


class Steady:
    """A client that sends on one channel and receives on another."""

    def __init__(self, host: Any, *arguments: str) -> None:
        self.host = host
        self.process = subprocess.Popen(
            [STORM, "steady", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(host), text=True, bufsize=1,
        )  # fmt: skip
        # What two processors send on one socket the kernel may deliver in another order, when it is short of time: its
        # loopback has a queue for each. Here every message out of order is to be our fault.
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self.process.pid, {cpus[self.process.pid % len(cpus)]})

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"a steady client ended with status {self.process.wait()}"
        return answer

    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = json.loads(self.ask("s"))
        return stats

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def environment(host: Any) -> dict[str, str]:
    return {**os.environ, "SELENE_SOCKET": str(host.path)}


def descriptors(host: Any) -> tuple[int, int]:
    """How many files selened and selened-dp have open."""
    return tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in (host.process.pid, host.datapath_pid()))  # type: ignore[return-value]


class System:
    """Both hosts and their steady clients."""

    def __init__(self, hosts: list[Any]) -> None:
        left, right = self.hosts = hosts
        self.random = random.Random(SEED)
        self.steady: list[Steady] = []
        for host, *arguments in (
            (left, "1", "2"), (right, "2", "1"), (left, "2", "1"), (left, "3", "4", "relayed"), (right, "4", "3"),
        ):  # fmt: skip
            self.steady.append(Steady(host, *arguments))
        self.wait_for_flow()
        self.settle()
        self.files = [descriptors(host) for host in self.hosts]

    def wait_for_flow(self, messages: int = 1) -> None:
        """Until every steady client has received so many more."""
        before = [client.stats()["received"] for client in self.steady]

        def flows() -> bool:
            return all(
                client.stats()["received"] >= n + messages for client, n in zip(self.steady, before, strict=True)
            )

        wait_until(flows, "messages at every client")

    def settle(self) -> None:
        """Pause, and wait until every buffer is accounted for; then go on. The last reports are in `reports`."""
        for client in self.steady:
            client.ask("p")
        try:
            wait_until(self._exact, "the exact count")
        except pytest.fail.Exception:
            pytest.fail("no exact count: " + "\n".join(json.dumps(r) for report in self.reports for r in report))
        for client in self.steady:
            client.ask("r")

    def _exact(self) -> bool:
        for client in self.steady:
            client.ask("n")
        try:
            self.reports = [host.ask("fsck", looks=3, interval_s=0.002) for host in self.hosts]
        except RpcError:
            self.reports = []
            return False
        return all(self._quiet(host, report) for host, report in zip(self.hosts, self.reports, strict=True))

    # One buffer of a source may be kept for its next batch, and one is the ring of a source that had several sinks.
    def _quiet(self, host: Any, report: list[dict[str, Any]]) -> bool:
        mine = sum(client.host is host for client in self.steady)
        *pools, daemons, verdict = report
        return (
            verdict["ok"]
            and verdict["busy"] == 0
            and daemons["sessions"] == mine == len(host.info("session"))
            and daemons["leaving_edges"] == 0
            and all(pool["references"] == 0 and pool.get("borrowed", 0) <= 2 for pool in pools)
        )

    def nothing_went_wrong(self) -> None:
        """Reliable streams lose nothing while nobody on their way dies."""
        counters = ("lost", "duplicated", "reordered", "refused", "dropped", "failed", "unsent")
        faults = [{name: stats[name] for name in counters} for stats in (client.stats() for client in self.steady)]
        if any(any(of.values()) for of in faults):
            logs = "\n".join(f"{host.path}:\n{host.said()[-4000:]}" for host in self.hosts)
            pytest.fail(f"{json.dumps(faults)}\n{logs}")

    def no_descriptors_left(self) -> None:
        wait_until(lambda: [descriptors(host) for host in self.hosts] == self.files, "the descriptors of the dead")

    def close(self) -> None:
        for client in self.steady:
            client.close()


pytestmark = pytest.mark.timeout(120 + 5 * KILLS)


@pytest.fixture
def system(make_daemon: Any) -> Iterator[System]:
    faulthandler.cancel_dump_traceback_later()  # the mark's own time holds, which grows with KILLS
    ports = free_port(), free_port()
    hosts = []
    for name, mine, other in (("left", *ports), ("right", *reversed(ports))):
        # On a busy machine it may take long until a killed daemon is back.
        config = f'peer_hold_s = 60\n[[peers]]\naddress = "127.0.0.1"\nport = {other}\n'
        hosts.append(make_daemon(name, config, port=mine).start())
    for host in hosts:
        wait_until(lambda host=host: connected(host), "the connection of the peers")  # type: ignore[misc]
    system = System(hosts)
    yield system
    system.close()


def test_killed_clients_leave_nothing_behind_and_harm_nobody(system: System) -> None:
    for number in range(KILLS):
        host = system.random.choice(system.hosts)
        victim = subprocess.Popen(
            [STORM, "victim", str(SEED * 1000003 + number), *(["relayed"] if number % 3 == 0 else [])],
            env=environment(host), stderr=subprocess.PIPE,
        )  # fmt: skip
        # From the middle of the greeting to some thousand messages later.
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(system.random.choice((0.003, 0.01, 0.05)) * system.random.random())
        victim.kill()
        said = victim.communicate(timeout=TIMEOUT_S)[1]
        assert victim.returncode == -signal.SIGKILL, said
        system.settle()
    system.no_descriptors_left()
    system.nothing_went_wrong()


def test_traffic_goes_on_while_selened_is_killed_and_comes_back(system: System) -> None:
    for _ in range(DAEMON_KILLS):
        host = system.random.choice(system.hosts)
        system.wait_for_flow(system.random.randrange(2000))
        host.process.kill()
        host.process.wait()
        system.wait_for_flow()
        host.start()
        wait_until(lambda: all(client.stats()["connected"] for client in system.steady), "the clients to be back")
        system.settle()
    system.nothing_went_wrong()


def test_clients_come_back_by_themselves_after_selened_dp_is_killed(system: System) -> None:
    for _ in range(DAEMON_KILLS):
        host = system.random.choice(system.hosts)
        system.wait_for_flow(system.random.randrange(2000))
        pid = host.datapath_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid, host=host: host.datapath_pid() not in (0, pid), "another datapath process")  # type: ignore[misc]
        wait_until(lambda: all(client.stats()["connected"] for client in system.steady), "the clients to be back")
        system.wait_for_flow()
        system.settle()
    system.no_descriptors_left()


def test_paths_change_under_traffic_without_loss_duplicate_or_reorder(system: System) -> None:
    """A second process listens beside a direct sink, and goes: each time the way changes to that through selened-dp and
    back."""
    left, right = system.hosts
    before = sum(record["epoch"] for host in system.hosts for record in host.info("source"))
    for host, channel in ((right, "1"), (left, "2")):
        visitor = subprocess.Popen(
            [STORM, "visitor", channel, str(CHANGES // 2)], env=environment(host), stderr=subprocess.PIPE
        )
        said = visitor.communicate(timeout=TIMEOUT_S + CHANGES)[1]
        assert visitor.returncode == 0, said
    system.settle()
    system.nothing_went_wrong()
    after = sum(record["epoch"] for host in system.hosts for record in host.info("source"))
    assert after - before >= CHANGES, "the way did change"
