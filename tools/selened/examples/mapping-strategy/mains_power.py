# SPDX-License-Identifier: Apache-2.0
"""A mapping strategy for hosts that may run on a battery: only on mains power may a fast stream poll a core.

In the configuration of selened: [mapping] strategy = "mains-power".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selened.mapping import StreamPolicy

SUPPLIES = Path("/sys/class/power_supply")


def strategy(policy: StreamPolicy, usable: tuple[str, ...]) -> list[str] | None:
    """Names of technologies, best first, or None: the lists of [mapping] decide. `usable` are those of this host.

    It is called whenever a stream is opened, and must not wait."""
    if policy.acceleration == "slow" or not on_battery():
        return None
    return [name for name in ("rdma", "xdp") if name in usable] + ["udp"]


def on_battery() -> bool:
    """Whether a battery is being emptied."""
    return any(file.read_text().strip() == "Discharging" for file in SUPPLIES.glob("*/status"))
