# SPDX-License-Identifier: Apache-2.0
"""What tests of several tools need: a free port, and waiting for a condition under a watchdog."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S: Final = 20.0


def free_port() -> int:
    """A port that is free for UDP and TCP on loopback."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            port: int = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                return port


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds; the watchdog's part is to fail with what was waited for."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.01)
