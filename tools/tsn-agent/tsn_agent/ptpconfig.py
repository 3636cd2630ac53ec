# SPDX-License-Identifier: Apache-2.0
"""What linuxptp is told: the configuration of ptp4l, and the command lines of ptp4l and phc2sys.

The options have the names that linuxptp 3.1 gives them (ptp4l(8), phc2sys(8)); what is not set here is left to it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from libqos.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

_PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_NOTICE: Final = 5  # LOG_NOTICE of syslog(3): changes of state, and what goes wrong
_MAX_INTERFACE: Final = 15  # IFNAMSIZ, without its end

# name in linuxptp, smallest and largest value
_RANGES: Final = {
    "domain": ("domainNumber", 0, 127),
    "transport_specific": ("transportSpecific", 0, 15),
    "priority1": ("priority1", 0, 255),
    "priority2": ("priority2", 0, 255),
    "log_sync_interval": ("logSyncInterval", -7, 7),
    "log_announce_interval": ("logAnnounceInterval", -7, 7),
    "log_delay_interval": ("logMinDelayReqInterval", -7, 7),
    "announce_receipt_timeout": ("announceReceiptTimeout", 2, 255),
    "proportional": ("pi_proportional_const", 0.0, 10.0),
    "integral": ("pi_integral_const", 0.0, 10.0),
}


@dataclass(frozen=True, kw_only=True)
class PtpConfig:
    """How a device takes part in PTP. Raises InputError for what linuxptp would refuse."""

    interfaces: tuple[str, ...]
    domain: int = 0
    transport: Literal["L2", "UDPv4", "UDPv6"] = "L2"
    delay_mechanism: Literal["E2E", "P2P", "Auto"] = "E2E"
    time_stamping: Literal["hardware", "software"] = "hardware"
    slave_only: bool = False
    free_running: bool = False  # measures, and leaves the clock alone
    transport_specific: int = 0  # 1: IEEE 802.1AS
    priority1: int = 128
    priority2: int = 128
    log_sync_interval: int = 0  # of seconds, to base 2
    log_announce_interval: int = 1
    log_delay_interval: int = 0
    announce_receipt_timeout: int = 3  # in announce intervals
    proportional: float = 0.0  # of the servo; 0.0: linuxptp's choice
    integral: float = 0.0
    system_clock: bool = False  # phc2sys sets the system's clock by that of the first interface

    def __post_init__(self) -> None:
        if not self.interfaces:
            raise InputError("interfaces: found none, accepted one or more")
        for interface in self.interfaces:
            # what the configuration or a shell would take for something else
            if not 0 < len(interface) <= _MAX_INTERFACE or not interface.isprintable() or set(interface) & set(" []#/"):
                raise InputError(f"interfaces: found {interface!a}, accepted the name of an interface")
        for field, choices in (
            ("transport", ("L2", "UDPv4", "UDPv6")),
            ("delay_mechanism", ("E2E", "P2P", "Auto")),
            ("time_stamping", ("hardware", "software")),
        ):
            if getattr(self, field) not in choices:
                raise InputError(f"{field}: found {getattr(self, field)!a}, accepted {', '.join(choices)}")
        for field, (_, smallest, largest) in _RANGES.items():
            if not smallest <= getattr(self, field) <= largest:
                raise InputError(f"{field}: found {getattr(self, field)}, accepted {smallest} to {largest}")
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
            **{name: getattr(self, field) for field, (name, *_) in _RANGES.items()},
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


def program(name: str, package: str = "linuxptp") -> str:
    """Where a program is. Raises InputError that says how to get it."""
    if (found := shutil.which(name)) is None and (found := shutil.which(name, path=_PLACES)) is None:
        raise InputError(f"{name} is not installed: apt-get install {package}")
    return found
