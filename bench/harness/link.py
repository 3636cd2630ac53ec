# SPDX-License-Identifier: Apache-2.0
"""Two hosts to measure between: network namespaces joined by a veth pair, or loopback where that is not allowed.

Names: ``qosb-<pid of the harness>-a`` and ``-b``. A harness that was killed with -9 leaves its pair, and the next one
removes it: the pid in the name is dead by then.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from harness.procs import Process, Record, RunError, cpu_time_ns

DEVICE = "qosb0"
NAMESPACE = re.compile(r"^qosb-(\d+)-[ab]\b", re.MULTILINE)
UDP_PORT = 7570


@dataclass(frozen=True)
class Host:
    """One end: its address, and the namespace it lives in (None: loopback)."""

    address: str
    namespace: str | None

    def command(self, command: Sequence[str]) -> list[str]:
        """Return ``command`` as it is to be run on this host."""
        if self.namespace is None:
            return list(command)
        return ["ip", "netns", "exec", self.namespace, *command]


@dataclass(frozen=True)
class Link:
    """Host ``a`` (measures) and host ``b`` (answers), and in words how they are joined."""

    a: Host
    b: Host
    kind: str


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def stale_namespaces(listing: str) -> list[str]:
    """Return the namespaces in an ``ip netns list`` output that belong to harnesses that are dead."""
    return [match.group(0) for match in NAMESPACE.finditer(listing) if not _alive(int(match.group(1)))]


def _namespaces(mtu: int | None) -> Link:
    for name in stale_namespaces(_ip("netns", "list")):
        _ip("netns", "del", name)
    a = Host("10.77.0.1", f"qosb-{os.getpid()}-a")
    b = Host("10.77.0.2", f"qosb-{os.getpid()}-b")
    for host in (a, b):
        _ip("netns", "add", str(host.namespace))
    _ip("link", "add", DEVICE, "netns", str(a.namespace), "type", "veth", "peer", "name", DEVICE, "netns",
        str(b.namespace))  # fmt: skip
    for host in (a, b):
        _ip("-n", str(host.namespace), "addr", "add", f"{host.address}/24", "dev", DEVICE)
        _ip("-n", str(host.namespace), "link", "set", DEVICE, "up", *(("mtu", str(mtu)) if mtu else ()))
        _ip("-n", str(host.namespace), "link", "set", "lo", "up")
    return Link(a, b, f"namespaces joined by veth, MTU {mtu or 1500}")


def _remove_namespaces() -> None:
    for end in "ab":
        # Deleting a namespace takes its end of the veth pair, and with that the other end, along.
        subprocess.run(["ip", "netns", "del", f"qosb-{os.getpid()}-{end}"], capture_output=True)


@contextlib.contextmanager
def link(mtu: int | None = None) -> Iterator[Link]:
    """Set two hosts up, and take them down again; says on stderr why it must be loopback, if it must.

    ``mtu``: of the veth pair, in bytes (None: Ethernet's 1500).
    """
    reason = "not root"
    try:
        if os.geteuid() == 0:
            try:
                made = _namespaces(mtu)
            except (RunError, OSError) as error:
                reason = str(error)
            else:
                yield made
                return
        print(f"measuring over loopback, not between namespaces: {reason}", file=sys.stderr)
        yield Link(Host("127.0.0.1", None), Host("127.0.0.2", None), f"loopback ({reason})")
    finally:
        if os.geteuid() == 0:
            _remove_namespaces()


def udp_errors(host: Host) -> int:
    """Return how many datagrams the kernel of ``host`` has received and dropped so far (0: on loopback, where others
    count too)."""
    if host.namespace is None:
        return 0
    snmp = subprocess.run(host.command(["cat", "/proc/net/snmp"]), check=True, capture_output=True, text=True).stdout
    names, values = (line.split()[1:] for line in snmp.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["InErrors"])


def free_udp_port(address: str) -> int:
    """Return a UDP port that nothing on ``address`` of this namespace holds right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def port_of(host: Host) -> int:
    """Return the port a baseline server may use on ``host``: a fresh namespace has them all."""
    return UDP_PORT if host.namespace else free_udp_port(host.address)


def server_and_client(
    server: Sequence[str],
    client: Sequence[str],
    *,
    server_cpus: Collection[int],
    client_cpus: Collection[int],
    server_environment: dict[str, str] | None = None,
    client_environment: dict[str, str] | None = None,
) -> Record:
    """Run ``client`` against ``server`` once and return the client's record.

    The server prints ``{"kind":"ready"}`` and is stopped afterwards. Added to the record: ``server_cpu_ns``, the
    server's whole CPU time between ready and the end of the client. Raises RunError.
    """
    with Process(server, cpus=server_cpus, environment=server_environment) as answering:
        answering.wait_ready()
        before = cpu_time_ns(answering.pid)
        with Process(client, cpus=client_cpus, environment=client_environment) as asking:
            record = asking.result()
        return {**record, "server_cpu_ns": cpu_time_ns(answering.pid) - before}
