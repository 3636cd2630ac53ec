# SPDX-License-Identifier: Apache-2.0
import io

import pytest

from libqos.table import TableWriter, cell, format_ns


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 ns"), (999, "999 ns"), (-5, "-5 ns"), (12_345, "12.35 µs"), (-1500, "-1.5 µs"), (999_999, "1000 µs"),
        (1_234_567, "1.235 ms"), (5 * 10**9, "5 s"), (12_345 * 10**9, "12345 s"),
    ],
)  # fmt: skip
def test_times_have_four_digits_and_a_unit(value: int, text: str) -> None:
    assert format_ns(value) == text


def test_rows_line_up_below_their_header() -> None:
    stream = io.StringIO()
    table = TableWriter(stream)
    table.write({"kind": "summary", "metric": "latency", "count": 12345, "p50_ns": 1500})
    table.write({"kind": "summary", "metric": "jitter", "count": 7, "p50_ns": -3})
    table.write({"kind": "info", "name": "x"})
    assert stream.getvalue() == (
        "metric         count        p50\nlatency       12 345     1.5 µs\njitter             7      -3 ns\n\nname\nx\n"
    )


def test_cells_cannot_speak_to_the_terminal() -> None:
    assert cell("topic", "a\x1b[31mb\n") == r"a\x1b[31mb\n"
    assert cell("flag", True) == "true"
    assert cell("none", None) == "–"
    assert cell("list", [1, "é"]) == '[1, "é"]'
