# SPDX-License-Identifier: Apache-2.0
"""Counting what goes wrong, and logging it without letting anybody fill the log."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging

_INTERVAL_S: Final = 10.0


class Notices:
    """Counters by kind. Each kind is logged at most once in ten seconds, with how many were left out."""

    def __init__(self, logger: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        self._logger = logger
        self._said: dict[str, tuple[float, int]] = {}  # when, and the count then

    def warn(self, kind: str, text: str) -> None:
        """Count one event of `kind` (a counter's name, never something a stranger chose), and perhaps log it."""
        self.counts[kind] += 1
        now = time.monotonic()
        when, count = self._said.get(kind, (now - 2 * _INTERVAL_S, self.counts[kind] - 1))
        if now - when < _INTERVAL_S:
            return
        unsaid = self.counts[kind] - count - 1
        self._said[kind] = (now, self.counts[kind])
        self._logger.warning("%s%s", text, f" ({unsaid} more like it before)" if unsaid else "")
