# SPDX-License-Identifier: Apache-2.0
"""The configuration of the daemon `tsn-agent run`."""

from __future__ import annotations

from dataclasses import dataclass

from libqos.config import option


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
    log_level: str = option("info", choices=("debug", "info", "warning", "error"), meaning="least important log line")
