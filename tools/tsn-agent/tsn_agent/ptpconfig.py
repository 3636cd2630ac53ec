# SPDX-License-Identifier: Apache-2.0
"""What linuxptp is told: the configuration of ptp4l, and the command lines of ptp4l and phc2sys.

The options have the names that linuxptp 3.1 gives them (ptp4l(8), phc2sys(8)); what is not set here is left to it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from libqos import config
from libqos.config import option
from libqos.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

_PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_NOTICE: Final = 5  # LOG_NOTICE of syslog(3): changes of state, and what goes wrong
_MAX_INTERFACE: Final = 15  # IFNAMSIZ, without its end

# how linuxptp calls them
_NAMES: Final = {
    "domain": "domainNumber",
    "transport_specific": "transportSpecific",
    "priority1": "priority1",
    "priority2": "priority2",
    "log_sync_interval": "logSyncInterval",
    "log_announce_interval": "logAnnounceInterval",
    "log_delay_interval": "logMinDelayReqInterval",
    "announce_receipt_timeout": "announceReceiptTimeout",
    "proportional": "pi_proportional_const",
    "integral": "pi_integral_const",
}
_row: Final = functools.partial(option, command_line=False)


@dataclass(frozen=True, kw_only=True)
class PtpConfig:
    """How a device takes part in PTP. Raises InputError for what linuxptp would refuse."""

    interfaces: tuple[str, ...] = _row(meaning="interfaces that take part in PTP")
    domain: int = _row(0, minimum=0, maximum=127, meaning="PTP domain")
    transport: str = _row("L2", choices=("L2", "UDPv4", "UDPv6"), meaning="what PTP messages travel in")
    delay_mechanism: str = _row("E2E", choices=("E2E", "P2P", "Auto"), meaning="between which clocks delay is measured")
    time_stamping: str = _row("hardware", choices=("hardware", "software"), meaning="who stamps packets")
    slave_only: bool = _row(False, meaning="never be the grandmaster")
    free_running: bool = _row(False, meaning="measure, and leave the clock alone")
    transport_specific: int = _row(0, minimum=0, maximum=15, meaning="1 is IEEE 802.1AS")
    priority1: int = _row(128, minimum=0, maximum=255, meaning="lower is the better grandmaster")
    priority2: int = _row(128, minimum=0, maximum=255, meaning="as priority1, asked last")
    log_sync_interval: int = _row(0, minimum=-7, maximum=7, meaning="between Sync messages, 2^N s")
    log_announce_interval: int = _row(1, minimum=-7, maximum=7, meaning="between Announce messages, 2^N s")
    log_delay_interval: int = _row(0, minimum=-7, maximum=7, meaning="between delay requests, 2^N s")
    announce_receipt_timeout: int = _row(3, minimum=2, maximum=255, meaning="announce intervals without a grandmaster")
    proportional: float = _row(0.0, minimum=0, maximum=10, meaning="of the servo; 0.0 is linuxptp's choice")
    integral: float = _row(0.0, minimum=0, maximum=10, meaning="of the servo; 0.0 is linuxptp's choice")
    system_clock: bool = _row(False, meaning="phc2sys sets the system's clock by that of the first interface")

    def __post_init__(self) -> None:
        if not self.interfaces:
            raise InputError("interfaces: found none, accepted one or more")
        for interface in self.interfaces:
            # what the configuration or a shell would take for something else
            if not 0 < len(interface) <= _MAX_INTERFACE or not interface.isprintable() or set(interface) & set(" []#/"):
                raise InputError(f"interfaces: found {interface!a}, accepted the name of an interface")
        for field, row in config.table(type(self)).items():
            try:
                config.check(row, getattr(self, field))
            except ValueError as error:
                raise InputError(f"{field}: found {getattr(self, field)!a}, accepted {error}") from None
        if self.system_clock and (self.time_stamping != "hardware" or self.free_running):
            raise InputError("system_clock: accepted with time_stamping hardware and without free_running only")

    def text(self, socket: Path) -> str:
        """The configuration of ptp4l, with its management socket at `socket`."""
        options = {
            "uds_address": socket,
            "network_transport": self.transport,
            "delay_mechanism": self.delay_mechanism,
            "time_stamping": self.time_stamping,
            "slaveOnly": int(self.slave_only),
            "free_running": int(self.free_running),
            "use_syslog": 0,
            "verbose": 1,
            "logging_level": _NOTICE,
            **{name: getattr(self, field) for field, name in _NAMES.items()},
        }
        lines = [f"{name} {value}" for name, value in options.items()]
        return "\n".join(["[global]", *lines, *(f"[{interface}]" for interface in self.interfaces), ""])

    def ptp4l(self, file: Path) -> list[str]:
        """The command line; `file` holds `text`."""
        return [program("ptp4l"), "-f", str(file)]

    def phc2sys(self, socket: Path) -> list[str]:
        """The command line: waits until the ptp4l at `socket` is synchronised, and has the offset to UTC from it."""
        return [
            program("phc2sys"), "-s", self.interfaces[0], "-c", "CLOCK_REALTIME", "-w", "-m", "-q", "-l", str(_NOTICE),
            "-z", str(socket), "-n", str(self.domain), f"--transportSpecific={self.transport_specific}",
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PtpLimits:
    """When a device is synchronised, and how closely ptp4l is watched; seconds and nanoseconds."""

    within_ns: int = 1_000
    beyond_ns: int = 2_000
    for_s: float = 2.0
    poll_s: float = 0.25
    answer_s: float = 1.0
    stale_s: float = 3.0  # without a new Sync the offset says nothing any more
    hung_s: float = 10.0  # without an answer ptp4l is started again

    def __post_init__(self) -> None:
        if not 0 < self.within_ns <= self.beyond_ns:
            raise InputError(f"beyond_ns: found {self.beyond_ns}, accepted within_ns ({self.within_ns}) or more")


def program(name: str, package: str = "linuxptp") -> str:
    """Where a program is. Raises InputError that says how to get it."""
    import shutil  # not for `tsn-agent --help`

    if (found := shutil.which(name)) is None and (found := shutil.which(name, path=_PLACES)) is None:
        raise InputError(f"{name} is not installed: apt-get install {package}")
    return found
