# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the resources that a machine may lack.

A test that needs something says so with a marker, such as `@pytest.mark.needs_netns`. Without it the test is skipped,
with the reason; but when the environment names the resource (`QOS_REQUIRE=netns,root`), the test fails instead, so that
a continuous integration that can have it never skips it unseen.

The watchdog is set in pyproject.toml: pytest-timeout fails a test after 60 s; should that not get through (a C call
that never returns), faulthandler prints every thread's stack and ends the run after 180 s.
"""

import functools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testbed import plugin as tsn

ROOT = Path(__file__).resolve().parent.parent


def _runs(*command: str) -> str | None:
    """None if the command succeeds, else why not."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return f"{command[0]} is not installed"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=20, check=False)
    return None if done.returncode == 0 else f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _netns() -> str | None:
    return _runs("unshare", "--net", "ip", "link", "add", "qos-probe0", "type", "veth", "peer", "name", "qos-probe1")


def _rt() -> str | None:
    return _runs("chrt", "--fifo", "10", "true")


def _xdp() -> str | None:
    try:
        socket.socket(44, socket.SOCK_RAW).close()  # AF_XDP
    except OSError as error:
        return str(error)
    return None


def _phc() -> str | None:
    return None if os.access("/dev/ptp0", os.R_OK) else "/dev/ptp0 cannot be read"


def _ipv6() -> str | None:
    return None if Path("/proc/net/if_inet6").exists() else "the kernel has no IPv6"


def _perf() -> str | None:
    return _runs("perf", "record", "--quiet", "-e", "cpu-clock", "-C", "0", "-o", "/dev/null", "--", "true")


def _tsn() -> str | None:
    return tsn.why_not(own=False)


def _tsn_own() -> str | None:
    return tsn.why_not(own=True)


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not installed"


# Marker needs_NAME, word NAME in QOS_REQUIRE: what it is, and a probe that returns why it is missing.
RESOURCES: dict[str, tuple[str, Callable[[], str | None]]] = {
    "root": ("root privilege", _root),
    "netns": ("network namespaces and veth pairs", _netns),
    "xdp": ("AF_XDP sockets", _xdp),
    "rt": ("real-time priorities", _rt),
    "phc": ("a PTP hardware clock, /dev/ptp0", _phc),
    "ipv6": ("IPv6", _ipv6),
    "tsn": ("a kernel with taprio and etf", _tsn),
    "tsn_own": ("one with simulated time and a PTP clock", _tsn_own),
    "perf": ("perf, and the right to sample CPUs", _perf),
    "linuxptp": ("linuxptp", _program("ptp4l")),
    "gcc": ("a C compiler", _program("gcc")),
    "pkgconfig": ("pkg-config", _program("pkg-config")),
    "tshark": ("tshark", _program("tshark")),
    "jq": ("jq", _program("jq")),
    "gnuplot": ("gnuplot", _program("gnuplot")),
    "man": ("man", _program("man")),
    "mandoc": ("mandoc", _program("mandoc")),
    "bash": ("bash", _program("bash")),
    "zsh": ("zsh", _program("zsh")),
    "fish": ("fish", _program("fish")),
    "systemd": ("systemd-analyze", _program("systemd-analyze")),
}


@functools.cache
def _missing(name: str) -> str | None:
    return RESOURCES[name][1]()


def _required() -> set[str]:
    return {word for word in os.environ.get("QOS_REQUIRE", "").split(",") if word}


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # run in the background: what we start must know Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, (what, _) in RESOURCES.items():
        config.addinivalue_line("markers", f"needs_{name}: the test needs {what}")
    if unknown := _required() - set(RESOURCES):
        known = ", ".join(RESOURCES)
        raise pytest.UsageError(f"QOS_REQUIRE: unknown {', '.join(sorted(unknown))}; known are {known}")
    tsn.install(config, _required())


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers():
        name = mark.name.removeprefix("needs_")
        if name == mark.name or name not in RESOURCES or (reason := _missing(name)) is None:
            continue
        if name in _required():
            pytest.fail(f"QOS_REQUIRE names {name}, but: {reason}", pytrace=False)
        pytest.skip(f"needs {RESOURCES[name][0]}: {reason}")


@pytest.fixture(scope="session")
def root_dir() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """Folder of the launchers."""
    return ROOT / "bin"
