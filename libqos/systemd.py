# SPDX-License-Identifier: Apache-2.0
"""Telling systemd how it goes (sd_notify(3)); without systemd all of it does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1`, `WATCHDOG=1`, `STATUS=...` to the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


def watchdog_interval_s() -> float:
    """How often WATCHDOG=1 has to be sent: half of what the unit asks for; 0 without a watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
    except ValueError:
        return 0.0


async def watchdog() -> None:
    """Say WATCHDOG=1 as long as the loop runs; ends at once without a watchdog."""
    while interval := watchdog_interval_s():
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
