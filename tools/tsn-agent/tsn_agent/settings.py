# SPDX-License-Identifier: Apache-2.0
"""The configuration of the daemon `tsn-agent run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from libqos.config import option

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
