# SPDX-License-Identifier: Apache-2.0
"""Records as a table for a person: what `--format table` prints in place of JSON Lines."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))
_WIDTH: Final = 9


def unit_of(value_ns: float) -> tuple[int, str]:
    """The largest unit that keeps a time at one or above: (nanoseconds in it, its name)."""
    return next(((scale, name) for scale, name in UNITS if abs(value_ns) >= scale), UNITS[-1])


def format_ns(value_ns: float) -> str:
    """A time with four digits and a unit: 12.35 µs."""
    scale, name = unit_of(value_ns)
    digits = f"{value_ns / scale:.4g}" if abs(value_ns) < 9999.5 * scale else f"{value_ns / scale:.0f}"
    return f"{digits} {name}"


class TableWriter:
    """Writes records of one or a few shapes as rows, each at once; a new shape gets a new header."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._columns: dict[str, int] = {}

    def write(self, record: Mapping[str, object]) -> None:
        """Write one record as a row. Numbers stand right, text left; times have units; `kind` is left out."""
        cells = {key: cell(key, value) for key, value in record.items() if key != "kind"}
        if list(cells) != list(self._columns):
            if self._columns:
                self._stream.write("\n")
            self._columns = {key: max(_WIDTH, len(heading(key)), len(text)) for key, text in cells.items()}
            self._row({key: heading(key) for key in cells}, record)
        self._row(cells, record)
        self._stream.flush()

    def _row(self, cells: Mapping[str, str], record: Mapping[str, object]) -> None:
        parts = [
            cells[key].ljust(width) if isinstance(record[key], str) else cells[key].rjust(width)
            for key, width in self._columns.items()
        ]
        self._stream.write("  ".join(parts).rstrip() + "\n")


def heading(key: str) -> str:
    """A key as the head of a column: the unit stands in the cells."""
    return key.removesuffix("_ns")


def cell(key: str, value: object) -> str:
    """One value as text. Control characters, which a topic's name may hold, are shown and never sent to a terminal."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key == "ts_ns":
            from datetime import datetime

            return datetime.fromtimestamp(value / 1e9).astimezone().strftime("%H:%M:%S.%f")
        return format_ns(value) if key.endswith("_ns") else f"{value:,}".replace(",", " ")
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
