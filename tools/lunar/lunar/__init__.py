# SPDX-License-Identifier: Apache-2.0
"""Lunar: publish and subscribe by topic name, on SELENE (docs/lunar.md).

>>> from lunar import Lunar
>>> with Lunar() as moon:  # doctest: +SKIP
...     moon.publish("plant/temperature", b"21.5")

`Lunar` is loaded when it is first used: the commands are in this package too, and must answer `--help` without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lunar.mom import Lunar

__all__ = ["Lunar"]


def __getattr__(name: str) -> Any:
    if name == "Lunar":
        from lunar.mom import Lunar

        return Lunar
    raise AttributeError(f"module 'lunar' has no attribute {name!r}")
