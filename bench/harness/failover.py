# SPDX-License-Identifier: Apache-2.0
"""A stream that fails over from one path to the other (thesis 4.2.3): outside, the kernel that runs it; inside, what
runs there, in real time.

Each path has two switches and a VLAN of its own, and begins at a port of the talker with taprio. Talker and listener
have an agent each; the listener's tells the talker's over a third link. A silent loss is the last switch's port to the
listener taken out of its bridge: every carrier stays up. A link-down is the first switch's port to the talker. Each cut
is of the path that carries the stream; the other one is mended before.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import pairs
from harness.build import ROOT
from harness.plot import PROJECT_PYTHON
from harness.procs import Record, RunError

PATHS = {"S1": ("s1", "s2"), "S2": ("s3", "s4")}
CAUSES = ("silent-loss", "link-down")
CYCLE_NS, WINDOW_NS, OFFSET_NS = 1_000_000, 500_000, 100_000
SILENCE = 8  # cycles: less than that the listener does not call a silence
# An alarm is told once a second, a stream that has moved stays for as long; and Linux tells of carriers once a second.
BETWEEN_S = 1.5
SETTLED = 200  # packets before the next cut
AROUND_NS = 200_000_000  # a cut: until the stream has long been back
TICK_S = 0.01  # of the processors' accounts
LOOK_S = 0.25  # between two looks: there is one processor, and to look is to take it from those who are looked at
NICE = {"tsn-agent": -10}  # as its unit has it
WATCHDOG_S = 30.0
AGENTS = "tcp://10.0.9.1:7480"

# Behind what is installed: the sources of libqos in the root lack the compiled modules.
sys.path.append(str(ROOT))


# ---- outside ---------------------------------------------------------------------------------------------------------


def run(cause: str, cuts: int, *, samples: bool = False) -> list[Record]:
    """Cut the path so often under the TSN kernel: a record of each cut, one of all, and with ``samples`` one of each
    packet. Raises RunError."""
    from tests.testbed import kernel

    command = [str(PROJECT_PYTHON), "-m", "harness.failover", cause, str(cuts), *(["samples"] if samples else [])]
    timeout = 2 * WATCHDOG_S + 5 * cuts
    # Whatever else this machine does would stop every host of the network at once, as nothing else in it can.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        with stolen() as disturbed:
            done = kernel.run(command, timeout=timeout, folder=ROOT / "bench")
    except kernel.KernelError as error:
        raise RunError(str(error)) from error
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    if done.returncode != 0:
        raise RunError(f"under the TSN kernel: status {done.returncode}: {done.stderr.decode(errors='replace')}")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    for record in records:
        if record["kind"] == "cut":
            record["disturbed"] = disturbed(record["ts_ns"])
    return records


@contextlib.contextmanager
def stolen() -> Iterator[Callable[[int], bool]]:
    """Watch how the hypervisor takes processors away; gives who tells whether that was so around an instant (Unix ns).
    All hosts of the network, which are one process, stand still then."""
    taken: list[int] = []
    end = threading.Event()

    def watch() -> None:
        before = pairs.stolen_s()
        while not end.wait(TICK_S):
            if (now := pairs.stolen_s()) > before:
                taken.append(time.time_ns())
            before = now

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield lambda at: any(-AROUND_NS / 4 < instant - at < AROUND_NS for instant in taken)
    finally:
        end.set()
        watching.join()


# ---- inside ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def network() -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Make both paths; give talker, listener, and the switches by name."""
    from tests.testbed.network import Network

    with Network() as made:
        talker, listener = made.host("talker"), made.host("listener")
        switches: dict[str, Any] = {}
        for number, names in enumerate(PATHS.values(), 1):
            hosts = [made.switch(name, 10 * number) for name in names]
            switches |= dict(zip(names, hosts, strict=True))
            made.link(talker, hosts[0], (f"t{number}", "p1"), queues=2)
            for one, other in itertools.pairwise(hosts):
                made.link(one, other, ("p2", "p1"))
            made.link(hosts[-1], listener, ("p2", f"l{number}"))
        here, there = made.link(talker, listener, ("mgmt", "mgmt"))
        here.add("10.0.9.1/24")
        there.add("10.0.9.2/24")
        yield talker, listener, switches


def wanted(listener: Any) -> dict[str, str]:
    """What the agents of talker and listener are to apply."""
    here = there = paths = ""
    for number in range(1, len(PATHS) + 1):
        (link,) = json.loads(listener.ip("-j", "link", "show", f"l{number}"))
        head = f"id = {10 * number}\naddresses = "
        here += (
            f'[[vlans]]\ninterface = "t{number}"\n{head}["10.0.{number}.1/24"]\n'
            f'[[neighbours]]\ninterface = "t{number}.{number}0"\naddress = "10.0.{number}.2"\n'
            f'mac = "{link["address"]}"\n'
            f'[[schedules]]\ninterface = "t{number}"\ntraffic_classes = 2\npcp = [0, 0, 0, 1, 0, 0, 0, 0]\n'
            f"[[schedules.entries]]\nopen = [1]\ninterval_ns = {WINDOW_NS}\n"
            f"[[schedules.entries]]\nopen = [0]\ninterval_ns = {CYCLE_NS - WINDOW_NS}\n"
        )
        there += f'[[vlans]]\ninterface = "l{number}"\n{head}["10.0.{number}.2/24"]\n'
        paths += f'[[streams.paths]]\ninterface = "t{number}.{number}0"\ndestination = "10.0.{number}.2"\n'
    stream = '[[streams]]\nname = "axis"\n'
    return {"talker": f"{here}{stream}{paths}", "listener": f'{there}{stream}tell = "{AGENTS}"\n'}


class Watched:
    """What a command has written, as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open()
        self._part = ""
        self.records: list[Record] = []

    def read(self) -> list[Record]:
        *lines, self._part = (self._part + self._file.read()).split("\n")
        self.records += map(json.loads, lines)
        return self.records

    def counters(self) -> Record:
        """The newest counters; without any, none received."""
        found = [record for record in self.read() if record["kind"] in ("talker", "listener")]
        return found[-1] if found else {"received": 0}


def _route(host: Any) -> Any:
    from pyroute2 import IPRoute

    return IPRoute(netns=host.namespace)


class Scene:
    """The network with its agents, talker and listener, while it runs."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, *, samples: bool) -> None:
        self._folder, self._stack = folder, stack
        self.talker, self.listener, self._switches = stack.enter_context(network())
        # open before anything is sent: to start one takes a process, and so the only processor
        self._routes = {name: stack.enter_context(_route(host)) for name, host in self._switches.items()}
        self._socket = folder / "talker.sock"
        for name, host in (("talker", self.talker), ("listener", self.listener)):
            (folder / f"{name}.toml").write_text(wanted(self.listener)[name])
            self._start(
                f"{name}-agent", host, "tsn-agent", "run", "--socket", folder / f"{name}.sock", "--interval-s", 3600,
                "--state", folder / f"{name}.db", "--streams", folder / f"{name}.toml",
                *(["--listen", AGENTS] if name == "talker" else []),
            )  # fmt: skip
            self.until((folder / f"{name}.sock").is_socket, f"the {name}'s agent")
        self.events = Watched(self._start("watch", self.talker, "tsn-agent", "watch", "--socket", self._socket)[1])
        common = ("--name", "axis", "--period", CYCLE_NS, "--scheduling", "fifo", "--rt-priority", 80)
        self._hearing, heard = self._start(
            "heard", self.listener, "tsn-listener", *common, "--interval", "500ms", "--silence", SILENCE,
            *(["--samples"] if samples else []), "--agent", folder / "listener.sock",
        )  # fmt: skip
        self.heard = Watched(heard)
        self.until(self.heard.read, "the listener")
        self._talking, told = self._start(
            "talked", self.talker, "tsn-talker", *common, "--priority", 3, "--offset", OFFSET_NS, "--spin", 0,
            "--destination", "10.0.1.2", "--interface", "t1.10", "--interval", "3600s", "--agent", self._socket,
        )  # fmt: skip
        self.told = Watched(told)
        self.until(lambda: self.path()["talkers"] == 1, "the talker at its agent")
        self.flows()

    def _start(self, name: str, host: Any, program: str, *options: object) -> tuple[subprocess.Popen[str], Path]:
        """Start a command of the project, whose output becomes a file; it ends with the scene."""
        path = self._folder / name
        with path.open("w") as out, (self._folder / f"{name}.log").open("w") as log:
            process = host.start(
                "nice", "-n", NICE.get(program, 0), PROJECT_PYTHON.parent / program, *options, stdout=out, stderr=log
            )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process, path

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for something; what it gives."""
        end = time.monotonic() + WATCHDOG_S
        while not (found := condition()):
            if time.monotonic() > end:
                logs = "".join(f"\n{log.stem}: {log.read_text()[-1000:]}" for log in sorted(self._folder.glob("*.log")))
                sys.exit(f"waited in vain for {what}{logs}")
            time.sleep(LOOK_S)
        return found

    def path(self) -> Record:
        """The way of the stream, as the talker's agent sees it."""
        from libqos import rpc

        (record,) = rpc.call(f"{self._socket}.status", {"method": "paths"})
        return dict(record)

    def flows(self) -> None:
        """Wait until so many more packets have come."""
        before = self.heard.counters()["received"]
        self.until(lambda: self.heard.counters()["received"] >= before + SETTLED, "the stream")

    def quiet(self) -> bool:
        """Whether nothing has happened to the stream lately."""
        moves = (r["ts_ns"] for r in self.events.read() if r["kind"] != "alarm" or r["alarm"] in CAUSES)
        last = max(moves, default=0)
        return not self.path()["moving"] and time.time_ns() - last > BETWEEN_S * 1e9

    def cut(self, cause: str, name: str) -> int:
        """Make a path fail; gives when, Unix ns: just before."""
        first, last = PATHS[name]
        switch, port, change = (
            (last, "p2", {"master": 0}) if cause == "silent-loss" else (first, "p1", {"state": "down"})
        )
        route = self._routes[switch]
        index = route.link_lookup(ifname=port)[0]
        at = time.time_ns()
        route.link("set", index=index, **change)
        return at

    def mend(self) -> None:
        """Make both paths work."""
        for number, names in enumerate(PATHS.values(), 1):
            first, last = (self._switches[switch] for switch in names)
            first.ip("link", "set", "p1", "up")
            last.ip("link", "set", "p2", "master", "br0")
            last.run("bridge", "vlan", "add", "vid", 10 * number, "dev", "p2")
        self.until(lambda: all(self.path()["usable"]), "both paths")

    def fail(self, cause: str) -> Record:
        """Cut the path that carries the stream, and wait until the other one does; what was seen of that."""
        names = list(PATHS)
        self.mend()
        self.until(self.quiet, "a stream that stays where it is: is the machine busy?")
        active = self.path()["active"]
        before = self.heard.counters()["lost"]
        at = self.cut(cause, names[active])
        time.sleep(LOOK_S)
        self.until(lambda: self.path()["active"] != active and not self.path()["moving"], "the other path")
        self.flows()
        gaps = [r["silence_ns"] for r in self.heard.read() if r.get("event") == "resumed" and r["ts_ns"] > at]
        alarm = self.until(
            lambda: [r for r in self.events.read() if r.get("alarm") == cause and r["ts_ns"] > at], "the alarm"
        )[0]
        return {
            "kind": "cut", "cause": cause, "ts_ns": at, "from": names[active], "to": names[1 - active],
            # a gap that is too short to be called a silence is no longer than that
            "downtime_ns": max(gaps, default=SILENCE * CYCLE_NS), "detected_ns": alarm["ts_ns"] - at,
            "lost": self.heard.counters()["lost"] - before, "evidence": alarm["evidence"],
        }  # fmt: skip

    def end(self) -> Record:
        """Stop talking, then listening: what became of every number."""
        self._talking.terminate()
        self._talking.wait(WATCHDOG_S)
        time.sleep(LOOK_S)
        self._hearing.terminate()
        self._hearing.wait(WATCHDOG_S)
        talked, heard = self.told.counters(), self.heard.counters()
        # the last ones may have gone by the path that was cut
        unseen = talked["sent"] + talked["failed"] + talked["skipped"] - 1 - heard["newest_seq"]
        return {
            "kind": "all", "sent": talked["sent"], "failed": talked["failed"], "skipped": talked["skipped"],
            "received": heard["received"], "lost": heard["lost"] + unseen, "duplicated": heard["duplicated"],
            "reordered": heard["reordered"],
            "unaccounted": abs(heard["newest_seq"] - heard["first_seq"] + 1 - heard["received"] - heard["lost"]),
        }  # fmt: skip


def inside(cause: str, cuts: int, *, samples: bool) -> None:
    """Cut the path so often, and print the records."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scene = Scene(folder, stack, samples=samples)
        os.nice(19)  # who looks on must not hold up who is looked at
        records = [scene.fail(cause) for _ in range(cuts)]
        records.append(scene.end())
        for record in (*records, *(r for r in scene.heard.records if r["kind"] == "latency")):
            print(json.dumps(record))


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    inside(sys.argv[1], int(sys.argv[2]), samples="samples" in sys.argv[3:])
