# SPDX-License-Identifier: Apache-2.0
"""The libraries that Lunar is compared with: how each program is built, and with what settings it runs.

No library is needed to set the project up. One that is not there is named, with what to install.
"""

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.build import CACHE, ROOT, compile_program
from harness.link import Host
from harness.procs import RunError
from harness.selene import CLIENT_HEADERS, library

PEERS = ROOT / "bench" / "peers"
LUNAR_HEADERS = ROOT / "tools" / "lunar" / "client"

# Interface and other host by address, so that neither multicast nor a default route is needed; the rest as it comes.
CYCLONE = """<CycloneDDS><Domain><General>
<Interfaces><NetworkInterface address="{own}"/></Interfaces><AllowMulticast>false</AllowMulticast></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><Peers><Peer Address="{other}"/></Peers></Discovery>
</Domain></CycloneDDS>"""


class MissingError(Exception):
    """A library is not installed; the message says what to install."""


def _environment_of_none(own: Host, other: Host) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Peer:
    """A messaging library: ``build`` makes its program (raises MissingError), ``environment`` is what that needs."""

    name: str
    build: Callable[[], Path]
    environment: Callable[[Host, Host], dict[str, str]] = _environment_of_none


def _pkg_config(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(["pkg-config", *arguments], check=False, capture_output=True, text=True)
    except OSError as error:
        raise MissingError("pkg-config is not installed (Debian: apt-get install pkg-config)") from error
    if done.returncode != 0:
        raise MissingError(done.stderr.strip())
    return done.stdout.split()


def _zeromq() -> Path:
    try:
        flags = _pkg_config("--cflags", "libzmq")
    except MissingError as error:
        raise MissingError("ZeroMQ is not installed (Debian: apt-get install libzmq3-dev)") from error
    return compile_program(PEERS / "zeromq.c", compile_flags=flags, link_flags=_pkg_config("--libs", "libzmq"))


def _cyclone() -> Path:
    hint = "Cyclone DDS is not installed (Debian: apt-get install cyclonedds-dev cyclonedds-tools)"
    try:
        flags, libraries = _pkg_config("--cflags", "CycloneDDS"), _pkg_config("--libs", "CycloneDDS")
    except MissingError as error:
        raise MissingError(hint) from error
    idl = PEERS / "message.idl"
    generated = CACHE / f"idl-{hashlib.sha256(idl.read_bytes()).hexdigest()[:16]}"
    generated.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["idlc", "-l", "c", str(idl)], cwd=generated, check=False, capture_output=True, text=True)
    except OSError as error:
        raise MissingError(hint) from error
    if done.returncode != 0:
        raise RunError(f"idlc {idl}: {done.stderr}")
    return compile_program(
        PEERS / "cyclone.c",
        compile_flags=[*flags, f"-I{generated}"],
        link_flags=[str(generated / "message.c"), *libraries],
    )


def _cyclone_environment(own: Host, other: Host) -> dict[str, str]:
    return {"CYCLONEDDS_URI": CYCLONE.format(own=own.address, other=other.address)}


def lunar_program() -> Path:
    """Return the executable of ``bench/peers/lunar.c``, built against the checkout's libraries; raises RunError."""
    folders = [library(), library("liblunar.so")]
    return compile_program(
        PEERS / "lunar.c",
        compile_flags=[f"-I{CLIENT_HEADERS}", f"-I{LUNAR_HEADERS}"],
        link_flags=[*(f for d in folders for f in (f"-L{d}", f"-Wl,-rpath,{d}")), "-Wl,--no-as-needed", "-llunar",
                    "-lselene"],
    )  # fmt: skip


ZEROMQ = Peer("zeromq", _zeromq)
CYCLONE_DDS = Peer("cyclonedds", _cyclone, _cyclone_environment)
