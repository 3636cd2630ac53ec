# SPDX-License-Identifier: Apache-2.0
"""`qos-stat`: samples in, one summary per metric out. The statistics are in `libqos.samples`; this is the command."""

from __future__ import annotations

import time
from typing import Any

import click

from libqos import cli, output
from libqos.samples import Statistics
from libqos.telemetry import SUMMARY_KEYS, Reader, TelemetryError


@cli.command("qos-stat")
@click.argument("files", nargs=-1, metavar="[FILE]...", shell_complete=cli.complete_file)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Summarise NAME_ns of any record that has it;"
              " may be repeated.  [default: latency, jitter]")  # fmt: skip
@click.option("--by", metavar="KEY", help="One summary for each value of this key, such as topic or size_bytes.")
@click.option("--deadline", "deadline_ns", callback=cli.duration, metavar="TIME", help="Count samples above this as"
              " late (jitter: early or late). 250us, 1ms, or nanoseconds.")  # fmt: skip
@click.option("--period", "period_ns", callback=cli.duration, metavar="TIME", help="Compute the jitter from ts_ns"
              " against this period: t(i) − (t(i−1) + T).")  # fmt: skip
@click.option("--follow", is_flag=True, help="Print a summary every --interval too, in constant memory.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.01, 86400), default=1.0, metavar="SECONDS",
              help="Time between summaries of --follow.")  # fmt: skip
@cli.format_option
@cli.common_options
def stat(
    files: tuple[str, ...],
    metrics: tuple[str, ...],
    by: str | None,
    deadline_ns: int | None,
    period_ns: int | None,
    follow: bool,
    interval_s: float,
    output_format: str,
) -> int:
    """Turn samples into summaries.

    Reads records (JSON Lines) from each FILE, or from stdin (-), and prints one summary per metric: count, lost (from
    gaps in seq, or from loss records where there are any), late, and the quantiles, mean and standard deviation.

    A latency sample is {"kind":"latency","ts_ns":…,"seq":…,"latency_ns":…}. Exit code 1 when there was no sample.
    """
    if by in SUMMARY_KEYS:
        raise click.BadParameter(f"{by!r} is a key of the summary itself", param_hint="--by")
    statistics = Statistics(
        metrics=tuple(name.removesuffix("_ns") for name in metrics), by=by, deadline_ns=deadline_ns,
        period_ns=period_ns, bounded=follow,
    )  # fmt: skip
    writer = output.writer(output_format)
    try:
        _read(files or ("-",), statistics, writer, interval_s if follow else None)
    except KeyboardInterrupt:
        _print(statistics, writer)
        raise
    _print(statistics, writer)
    for remark in statistics.remarks():
        cli.warn(remark)
    if not statistics.samples:
        raise _no_samples(statistics, files)
    return cli.OK


def _print(statistics: Statistics, writer: Any) -> None:
    for record in statistics.summaries():
        writer.write(record)


def _read(files: tuple[str, ...], statistics: Statistics, writer: Any, interval_s: float | None) -> None:
    """Read every file into `statistics`, with a summary each interval."""
    due = time.monotonic() + (interval_s or 0)
    for file in files:
        with Reader(file) as reader:
            for batch in reader.batches(interval_s):
                for reader.line, record in batch:
                    statistics.add(reader, record)
                if interval_s is not None and time.monotonic() >= due:
                    _print(statistics, writer)
                    due = time.monotonic() + interval_s
            if reader.truncated:
                cli.warn(f"{reader.name}: the last line is cut off and was left out: its writer did not end well")
        statistics.end_of_file()


def _no_samples(statistics: Statistics, files: tuple[str, ...]) -> NoSamplesError:
    where = ", ".join(files) or "stdin"
    if not statistics.kinds:
        return NoSamplesError(f"{where}: no records: found nothing, accepted JSON Lines with samples")
    wanted = " or ".join(f"{name}_ns" for name in statistics.metrics) or "kind latency"
    kinds = ", ".join(statistics.kinds)
    return NoSamplesError(f"{where}: no samples: found records of kind {kinds}, accepted {wanted}")


class NoSamplesError(TelemetryError):
    """There was nothing to summarise: the command has failed, though it was used as it should be."""

    exit_code = cli.FAILED


main = cli.entry(stat)

if __name__ == "__main__":
    main()
