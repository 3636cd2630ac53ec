# SPDX-License-Identifier: Apache-2.0
"""The configuration of the daemon `tsn-agent run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from libqos.config import option, section
from libqos.errors import InputError
from tsn_agent.ptpconfig import PtpConfig, PtpLimits


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """Where the controller is, and what proves who the agent is."""

    url: str = option("", meaning="unix:///PATH, tcp://HOST:PORT or tls://HOST:PORT; by default there is none")
    authority: str = option("", meaning="for tls: file of the authority that has signed both certificates, PEM")
    certificate: str = option("", meaning="for tls: file of the agent's certificate, PEM")
    key: str = option("", meaning="for tls: file of its key, PEM, not encrypted")
    name: str = option("", meaning="what the controller calls this device; by default the name of the host")
    report_s: float = option(5.0, minimum=0.1, maximum=3600, meaning="how often the controller is told the state")
    requests: str = option("local", choices=("local", "controller"), meaning="who gives streams their places")
    reconfigure_ms: int = option(200, minimum=0, maximum=60_000, meaning="how long it may take to say where a stream "
                                 "goes on after a fault; then the agent decides; 0: it is not asked")  # fmt: skip

    def __post_init__(self) -> None:
        files = [bool(file) for file in (self.authority, self.certificate, self.key)]
        if not self.url:
            if any(files) or self.requests == "controller":
                raise ValueError("found no url, which authority, certificate, key and requests = controller need")
            return
        from libqos import endpoint

        try:
            scheme = endpoint.parse(self.url).scheme
        except InputError as error:
            raise ValueError(f"url: {error}") from None
        if not all(files) if scheme == "tls" else any(files):
            raise ValueError("accepted all of authority, certificate and key with tls://, and none of them without")


@dataclass(frozen=True, kw_only=True)
class ClockSettings(PtpConfig):
    """What linuxptp is told, and when the clock counts as synchronised."""

    interfaces: tuple[str, ...] = option((), meaning="that take part in PTP; by default linuxptp is left alone")
    within_ns: int = option(PtpLimits.within_ns, minimum=1, maximum=10**9, command_line=False,
                            meaning="synchronised is who stays this close")  # fmt: skip
    beyond_ns: int = option(PtpLimits.beyond_ns, minimum=1, maximum=10**9, command_line=False,
                            meaning="and no longer who is farther away")  # fmt: skip
    for_s: float = option(PtpLimits.for_s, minimum=0, maximum=3600, command_line=False,
                          meaning="how long to stay close first")  # fmt: skip

    def __post_init__(self) -> None:
        try:
            if self.interfaces:
                super().__post_init__()
            self.limits()
        except InputError as error:
            raise ValueError(str(error)) from None

    def limits(self) -> PtpLimits:
        """When the clock is synchronised. Raises InputError."""
        return PtpLimits(within_ns=self.within_ns, beyond_ns=self.beyond_ns, for_s=self.for_s)


if TYPE_CHECKING:
    from libqos.endpoint import TlsFiles


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the daemon is told; what the device is to have is a file of its own (`streams`)."""

    socket: str = option(
        "", meaning="control socket; by default tsn-agent.sock in $RUNTIME_DIRECTORY or the user's own"
    )
    state: str = option("", meaning="what must not be forgotten; by default tsn-agent.db in $STATE_DIRECTORY, "
                        "/var/lib/qos, or the user's own")  # fmt: skip
    streams: str = option("", meaning="file to apply at start and at SIGHUP; by default what was applied last")
    interval_s: float = option(5.0, minimum=0.1, maximum=3600, meaning="how often drops are counted and what is there "
                               "is compared with what is wanted")  # fmt: skip
    controller: ControllerSettings = section(ControllerSettings, meaning="the controller of the network")  # noqa: RUF009 - makes a field
    ptp: ClockSettings = section(ClockSettings, meaning="the clock of this device, held by linuxptp")  # noqa: RUF009
    listen: str = option("", meaning="where agents of other hosts tell of what their listeners miss: "
                         "unix:///PATH, tcp://HOST:PORT or tls://HOST:PORT; nowhere by default")  # fmt: skip
    authority: str = option("", meaning="for tls://: PEM file of the authority of all agents' certificates")
    certificate: str = option("", meaning="for tls://: PEM file of this agent's certificate")
    key: str = option("", meaning="for tls://: PEM file of its key")
    log_level: str = option("info", choices=("debug", "info", "warning", "error"), meaning="least important log line")

    def __post_init__(self) -> None:
        if 0 < sum(map(bool, (self.authority, self.certificate, self.key))) < 3:
            raise ValueError("authority, certificate, key: found some of them, accepted all three or none")

    def tls(self) -> TlsFiles | None:
        """The three files, if they are given."""
        from libqos.endpoint import TlsFiles

        return TlsFiles(Path(self.authority), Path(self.certificate), Path(self.key)) if self.key else None
