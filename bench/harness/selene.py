# SPDX-License-Identifier: Apache-2.0
"""The project's side of a bench: daemons started and stopped, and the command lines of its C programs.

What a bench knows of SELENE's command lines is here and nowhere else.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.build import ROOT, compile_program
from harness.link import Host, Link, free_udp_port, udp_errors
from harness.procs import Process, Record, RunError, cpu_time_ns, descendants, place

SELENED = ROOT / "bin" / "selened"
CLIENT_HEADERS = ROOT / "tools" / "selened" / "client"
BENCH_SOURCE = ROOT / "bench" / "selene-pingpong.c"
NAMESPACE_PORT = 7471
READY_TIMEOUT_S = 10.0
LATE_S = 5.0


@dataclass(frozen=True)
class Daemon:
    """A running selened: ``environment`` is what a client needs to find it."""

    host: Host
    socket: Path
    process: Process

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a client at this daemon."""
        return {"SELENE_SOCKET": str(self.socket)}

    def pids(self) -> list[int]:
        """Return selened and the processes it started (selened-dp)."""
        return [self.process.pid, *descendants(self.process.pid)]

    def place(self, cpus: Collection[int]) -> None:
        """Move every thread of the daemon to ``cpus``."""
        for pid in self.pids():
            place(pid, cpus)

    def cpu_ns(self) -> int:
        """Return the CPU time of the daemon's processes so far; raises RunError if one is gone."""
        return sum(cpu_time_ns(pid) for pid in self.pids())

    def datapath_cpu_ns(self) -> int:
        """Return the CPU time so far of what carries: selened-dp, without selened, which only decides."""
        return sum(cpu_time_ns(pid) for pid in descendants(self.process.pid))


@dataclass(frozen=True)
class Pair:
    """A daemon on each end of a link."""

    a: Daemon
    b: Daemon

    def place(self, a_cpus: Collection[int], b_cpus: Collection[int]) -> None:
        """Move the daemon of each host to the CPUs of that host's program."""
        self.a.place(a_cpus)
        self.b.place(b_cpus)

    def datapath_cpu_ns(self) -> int:
        """Return the CPU time of both datapath processes so far."""
        return self.a.datapath_cpu_ns() + self.b.datapath_cpu_ns()


def _config(host: Host, port: int, peer: tuple[Host, int] | None) -> str:
    lines = [f'address = "{host.address}"', f"port = {port}"]
    if peer is not None:
        lines += ["", "[[peers]]", f'address = "{peer[0].address}"', f"port = {peer[1]}"]
    return "\n".join(lines) + "\n"


def _accepts(path: Path) -> bool:
    """Tell whether something listens on the unix socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _wait_accepting(daemon: Daemon) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    status = Path(f"{daemon.socket}.status")
    # The status socket is the last thing a daemon opens.
    while not (status.exists() and _accepts(daemon.socket)):
        if not daemon.process.running():
            raise daemon.process.failure("ended before it was ready")
        if time.monotonic() > deadline:
            raise daemon.process.failure(f"not ready after {READY_TIMEOUT_S:g} s")
        time.sleep(0.01)


@contextlib.contextmanager
def _daemons(hosts: list[Host]) -> Iterator[list[Daemon]]:
    """Start a selened on each host, each the others' peer (two at most), and wait until they accept clients."""
    if not SELENED.exists():
        raise RunError(f"{SELENED} is not there")
    ports = [NAMESPACE_PORT if host.namespace else free_udp_port(host.address) for host in hosts]
    folder = Path(tempfile.mkdtemp(prefix="qosb-"))
    try:
        with contextlib.ExitStack() as stack:
            started = []
            for number, host in enumerate(hosts):
                peer = (hosts[1 - number], ports[1 - number]) if len(hosts) == 2 else None
                config, path = folder / f"{number}.toml", folder / f"{number}.sock"
                config.write_text(_config(host, ports[number], peer))
                command = host.command([str(SELENED), "--config", str(config), "--socket", str(path)])
                started.append(Daemon(host, path, stack.enter_context(Process(command))))
            for daemon in started:
                _wait_accepting(daemon)
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def selene_pair(link: Link) -> Iterator[Pair]:
    """Run a selened on each end of ``link``; raises RunError if one does not get ready."""
    with _daemons([link.a, link.b]) as (a, b):
        yield Pair(a, b)


@contextlib.contextmanager
def selene_local() -> Iterator[Daemon]:
    """Run one selened without peers, on loopback; raises RunError if it does not get ready."""
    with _daemons([Host("127.0.0.1", None)]) as (daemon,):
        yield daemon


def library(name: str = "libselene.so") -> Path:
    """Return the folder of the built library ``name`` (``QOS_SELENE_LIB`` names another); raises RunError."""
    given = os.environ.get("QOS_SELENE_LIB")
    found = [Path(given)] if given else sorted(path.parent for path in (ROOT / "build").glob(f"**/{name}"))
    if not found or not (found[0] / name).exists():
        raise RunError(f"{name} is not built: run `make setup`, or name its folder in QOS_SELENE_LIB")
    return found[0]


def selene_bench() -> Path:
    """Return the executable of ``bench/selene-pingpong.c``, built against the checkout's libselene."""
    folder = library()
    return compile_program(
        BENCH_SOURCE,
        compile_flags=[f"-I{CLIENT_HEADERS}"],
        link_flags=[f"-L{folder}", f"-Wl,-rpath,{folder}", "-lselene"],
    )


def pingpong_command(
    role: str, *, size: int, mode: str, relayed: bool = False, count: int | None = None, warmup: int | None = None
) -> list[str]:
    """Return the command of one side (``role``: ``server`` or ``client``); ``mode`` is ``blocking`` or ``spin``."""
    command = [str(selene_bench()), f"pingpong-{role}", "--size", str(size), "--spin", str(int(mode == "spin"))]
    if count is not None:
        command += ["--count", str(count)]
    if warmup is not None:
        command += ["--warmup", str(warmup)]
    return [*command, "--relayed", "1"] if relayed else command


@dataclass(frozen=True)
class Flood:
    """A one-way flood: ``count`` messages of ``size`` bytes, ``burst`` per call, ``rate`` a second (None: full speed).

    Reliable (waits for credit and slow sinks) unless ``best_effort``. The source's CPU time counts from message
    ``warmup``.
    """

    size: int
    count: int
    burst: int = 1
    rate: int | None = None
    spin: bool = False
    relayed: bool = False
    best_effort: bool = False
    coalesce: bool = True
    warmup: int = 100

    def command(self, role: str, sinks: int = 1) -> list[str]:
        """Return the command of ``role`` (``source`` or ``sink``); a source waits for ``sinks`` before it starts."""
        numbers = {"size": self.size, "count": self.count, "burst": self.burst, "spin": int(self.spin),
                   "relayed": int(self.relayed), "best-effort": int(self.best_effort), "coalesce": int(self.coalesce),
                   "sinks": sinks, "warmup": self.warmup} | ({"rate": self.rate} if self.rate else {})  # fmt: skip
        return [str(selene_bench()), f"flood-{role}", *(f for n, v in numbers.items() for f in (f"--{n}", str(v)))]


def run_flood(
    flood: Flood,
    source: Daemon,
    target: Daemon,
    *,
    source_cpus: Collection[int],
    sink_cpus: Collection[int],
    sinks: int = 1,
    stopped: int = 0,
) -> Record:
    """Let one process send to ``sinks`` others, and to ``stopped`` more that SIGSTOP holds; return what came of it.

    ``rate_per_s`` and ``goodput_bits_per_s`` are the mean of the sinks that run. ``lost`` is what they did not
    get, or got twice; of that the source counted ``dropped`` and the kernel ``kernel_lost``. A reliable sink that lost
    something has a rate of 0. ``send_cpu_ns`` is the CPU time per message
    of the source and of the datapath processes. Raises RunError.
    """
    daemons = [source] if source is target else [source, target]
    try:
        return _run_flood(flood, source, target, daemons, source_cpus, sink_cpus, sinks, stopped)
    except RunError as failure:
        said = "\n".join(str(daemon.process.failure("has said")) for daemon in daemons)
        raise RunError(f"{failure}\n{said}") from failure


def _run_flood(
    flood: Flood,
    source: Daemon,
    target: Daemon,
    daemons: list[Daemon],
    source_cpus: Collection[int],
    sink_cpus: Collection[int],
    sinks: int,
    stopped: int,
) -> Record:
    errors = sum(udp_errors(daemon.host) for daemon in daemons)
    with contextlib.ExitStack() as stack:

        def start(role: str, at: Daemon, cpus: Collection[int], wanted: int = 1) -> Process:
            command = at.host.command(flood.command(role, wanted))
            return stack.enter_context(Process(command, cpus=cpus, environment=at.environment))

        receivers = [start("sink", target, sink_cpus) for _ in range(sinks + stopped)]
        for receiver in receivers:
            receiver.wait_ready()
        for receiver in receivers[sinks:]:
            os.kill(receiver.pid, signal.SIGSTOP)
        before = sum(daemon.datapath_cpu_ns() for daemon in daemons)
        sender = start("source", source, source_cpus, sinks + stopped if source is target else 1)
        sent = sender.result()
        deadline = time.monotonic() + (0 if flood.best_effort else LATE_S)
        records = []
        for receiver in receivers[:sinks]:
            while receiver.running() and time.monotonic() < deadline:
                time.sleep(0.005)
            if receiver.running():
                os.kill(receiver.pid, signal.SIGTERM)
            records.append(receiver.result())
        carried = sum(daemon.datapath_cpu_ns() for daemon in daemons) - before
        for receiver in receivers[sinks:]:
            os.kill(receiver.pid, signal.SIGKILL)
    kernel = sum(udp_errors(daemon.host) for daemon in daemons) - errors
    lost = sum(max(record["lost"], sent["count"] - record["count"]) + record["duplicated"] for record in records)
    means = {key: sum(record[key] for record in records) / sinks
             for key in ("rate_per_s", "goodput_bits_per_s", "latency_p50_ns", "cpu_ns")}  # fmt: skip
    return {
        "kind": "flood",
        "count": sent["count"],
        "lost": lost,
        "dropped": sent["dropped"],
        "kernel_lost": kernel,
        **means,
        "ended_ns": max(record["ended_ns"] for record in records),
        "sent_per_s": sent["rate_per_s"],
        "source_cpu_ns": sent["cpu_ns"],
        "daemon_cpu_ns": carried / sent["count"],
        "send_cpu_ns": sent["cpu_ns"] + carried / sent["count"],
    }


def waiting_cpu(server: list[str], daemons: Collection[Daemon], *, cpus: Collection[int], seconds: float) -> Record:
    """Let ``server`` wait for messages that do not come; return what it and the daemons use meanwhile.

    ``wait_percent`` and ``daemon_percent`` are percent of one core, over ``seconds`` from when the server was ready,
    a first spin included.
    """
    first = next(iter(daemons))
    with Process(server, cpus=cpus, environment=first.environment) as process:
        process.wait_ready()
        before, daemons_before = cpu_time_ns(process.pid), sum(daemon.cpu_ns() for daemon in daemons)
        start = time.monotonic_ns()
        time.sleep(seconds)
        elapsed = time.monotonic_ns() - start
        used = cpu_time_ns(process.pid) - before
        daemons_used = sum(daemon.cpu_ns() for daemon in daemons) - daemons_before
    return {
        "kind": "waiting",
        "elapsed_ns": elapsed,
        "wait_percent": 100 * used / elapsed,
        "daemon_percent": 100 * daemons_used / elapsed / len(daemons),
    }
