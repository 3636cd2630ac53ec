# SPDX-License-Identifier: Apache-2.0
"""JSON Lines into qos-stat and qos-plot. The first byte says with which options."""

import contextlib
import io
import os

from libqos.errors import InputError
from libqos.plotting import series
from libqos.samples import Statistics
from libqos.table import TableWriter
from libqos.telemetry import Reader, Writer

_FILE = os.memfd_create("samples")


class Stream(io.BytesIO):
    """Gives a few bytes at a time."""

    name = "fuzz"

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 1, 100))


def _stat(how: int, text: bytes) -> None:
    statistics = Statistics(
        metrics=("latency",) if how & 2 else (), by="k" if how & 4 else None, deadline_ns=1000 if how & 8 else None,
        period_ns=1000 if how & 16 else None, bounded=bool(how & 32),
    )  # fmt: skip
    reader = Reader(Stream(text))
    for record in reader:
        statistics.add(reader, record)
    statistics.end_of_file()
    for writer in (Writer(io.BytesIO()), TableWriter(io.StringIO())):
        for record in statistics.summaries():
            writer.write(record)
    list(statistics.remarks())


def _plot(how: int, text: bytes) -> None:
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, text, 0)
    for one in series.load([f"/proc/self/fd/{_FILE}"], "latency", by="k" if how & 4 else None, labels=[]):
        one.at(0.5)
        assert one.count >= 0 or one.from_summary


def test_one_input(data: bytes) -> None:
    how, text = data[0] if data else 0, data[1:]
    with contextlib.suppress(InputError):
        (_plot if how & 1 else _stat)(how, text)
