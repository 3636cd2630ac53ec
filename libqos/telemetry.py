# SPDX-License-Identifier: Apache-2.0
"""Records on stdout: JSON Lines in, JSON Lines out.

Rules that hold for every tool (they are the contract between the tools):
- one JSON object a line, each with a `kind`; keys are snake_case and carry their unit; times are integers;
- `ts_ns` is Unix time in nanoseconds;
- a line is written with one write(2), so that a reader never sees half a record while the writer lives, and at once
  unless the writer is in batch mode;
- a reader names file and line in every error. A last line without a newline that is no JSON is what a killed writer
  leaves behind: it is counted in `Reader.truncated` and skipped; rubbish anywhere else is an error.

Statistics over samples that need no file live here too (`quantile`, `jitter`, `summary`), so that every tool and every
benchmark reports the same number for the same samples.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, Self

from libqos.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Record = dict[str, Any]

SUMMARY_KEYS: Final = (
    "kind", "metric", "count", "lost", "late", "min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns", "mean_ns",
    "stddev_ns",
)  # fmt: skip
QUANTILES: Final = (("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99), ("p999_ns", 0.999))

MAX_LINE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 18
_BATCH_BYTES: Final = 1 << 16

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
# What JSONDecoder itself calls: (value, end) from text and start, StopIteration where no value starts.
_scan: Callable[[str, int], tuple[Any, int]] = json.scanner.make_scanner(json.JSONDecoder())  # type: ignore[attr-defined]


class TelemetryError(InputError):
    """A record that breaks the contract. The text starts with `file:line:` where there is one."""


class ByteSink(Protocol):
    """What a writer needs of a stream: a raw or buffered binary file, or a BytesIO."""

    def write(self, data: bytes, /) -> int | None: ...
    def flush(self) -> None: ...


def latency_record(seq: int, latency_ns: int, ts_ns: int, jitter_ns: int | None = None, **extra: object) -> Record:
    """One latency sample in the shape of the contract. `ts_ns` is the time of arrival; `extra` keys come last."""
    record: Record = {"kind": "latency", "ts_ns": ts_ns, "seq": seq, "latency_ns": latency_ns}
    if jitter_ns is not None:
        record["jitter_ns"] = jitter_ns
    if extra:
        record.update(extra)
    return record


class Writer:
    """Writes records to a binary stream (stdout by default), one line each.

    Each line is flushed at once; with `batch=True` lines are gathered to 64 KiB and written at `flush()` or `close()`,
    for a command that ends by itself. A reader that went away shows as BrokenPipeError, which `libqos.cli.run` turns
    into a quiet end. Not for use from several threads at once.
    """

    def __init__(self, stream: ByteSink | None = None, *, batch: bool = False) -> None:
        self._stream: ByteSink = stream if stream is not None else sys.stdout.buffer
        self._batch = batch
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def write(self, record: Mapping[str, object]) -> None:
        """Write one record. Raises TelemetryError when it has no `kind` or holds what JSON cannot."""
        if "kind" not in record:
            raise TelemetryError(f"record without a kind: found the keys {', '.join(record) or '(none)'}")
        try:
            text = _encode(record)
        except (TypeError, ValueError) as error:
            raise TelemetryError(f"record of kind {record['kind']!r} is not JSON: {error}") from error
        # Half a surrogate pair, which UTF-8 cannot hold, becomes its JSON escape.
        self._put(text.encode(errors="backslashreplace") + b"\n")

    def latency(
        self, seq: int, latency_ns: int, ts_ns: int | None = None, jitter_ns: int | None = None, **extra: object
    ) -> None:
        """Write one latency sample; `ts_ns` is now when it is not given. The fast path: no dictionary, no encoder."""
        if ts_ns is None:
            ts_ns = time.time_ns()
        if extra:
            self.write(latency_record(seq, latency_ns, ts_ns, jitter_ns, **extra))
        elif jitter_ns is None:
            self._put(b'{"kind":"latency","ts_ns":%d,"seq":%d,"latency_ns":%d}\n' % (ts_ns, seq, latency_ns))
        else:
            self._put(
                b'{"kind":"latency","ts_ns":%d,"seq":%d,"latency_ns":%d,"jitter_ns":%d}\n'
                % (ts_ns, seq, latency_ns, jitter_ns)
            )

    def loss(self, lost: int, ts_ns: int | None = None, **extra: object) -> None:
        """Write a loss record: `lost` messages are known to be missing (a sink's own count)."""
        self.write({"kind": "loss", "ts_ns": time.time_ns() if ts_ns is None else ts_ns, "lost": lost, **extra})

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            self._write_all(data)
        self._stream.flush()

    def close(self) -> None:
        """Flush. The stream itself stays open: stdout is not ours to close."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # A reader that left must not replace the error that brought us here.
        if not isinstance(error, BrokenPipeError):
            self.close()

    def _put(self, line: bytes) -> None:
        if self._batch:
            self._pending.append(line)
            self._pending_bytes += len(line)
            if self._pending_bytes >= _BATCH_BYTES:
                self.flush()
        else:
            self._write_all(line)
            self._stream.flush()

    def _write_all(self, data: bytes) -> None:
        written = self._stream.write(data)
        while written is not None and written < len(data):  # raw streams may take less than they were given
            data = data[written:]
            written = self._stream.write(data)


class Reader:
    """Reads records from a file, from `-` (stdin), or from a binary stream.

    Iterating gives one record after the other and blocks for more; `batches()` gives what has arrived, at the latest
    after a time-out, for a command that also has a clock to follow. `line` is the line of the record given last,
    `truncated` the number of last lines that a dying writer left unfinished, `records` the number given.
    """

    def __init__(self, source: str | BinaryIO) -> None:
        self.line = 0
        self.records = 0
        self.truncated = 0
        self._rest = b""
        self._lines_read = 0
        self._owned = False
        if isinstance(source, str) and source != "-":
            self.name = source
            try:
                self._stream: Any = open(source, "rb", buffering=0)  # noqa: SIM115 - closed in close()
            except OSError as error:
                raise TelemetryError(f"{source}: cannot be read: {error.strerror}") from error
            self._owned = True
        else:
            self.name = "stdin" if isinstance(source, str) else str(getattr(source, "name", "stream"))
            stream: Any = sys.stdin.buffer if isinstance(source, str) else source
            self._stream = getattr(stream, "raw", stream)  # unbuffered, or select() would not see what is buffered

    def close(self) -> None:
        """Close the file; stdin and a stream that was passed in stay open."""
        if self._owned:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Record]:
        for batch in self.batches():
            for self.line, record in batch:
                yield record

    def batches(self, timeout_s: float | None = None) -> Iterator[list[tuple[int, Record]]]:
        """Lists of (line, record) as they arrive; an empty list when nothing did for `timeout_s` seconds."""
        while True:
            if timeout_s is not None and not self._readable(timeout_s):
                yield []
                continue
            try:
                data = self._stream.read(_READ_BYTES)
            except OSError as error:
                raise TelemetryError(f"{self.name}: cannot be read: {error.strerror}") from error
            if data is None:  # a non-blocking stream with nothing to give
                self._readable(0.1)
                continue
            if not data:
                last = self._last_line()
                if last:
                    yield last
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MAX_LINE_BYTES:
                raise self.error(
                    f"found a line of more than {MAX_LINE_BYTES} bytes, accepted one JSON object a line",
                    line=self._lines_read + len(lines) + 1,
                )
            batch = [item for line in lines if (item := self._parse(line)) is not None]
            if batch:
                yield batch

    def error(self, message: str, *, line: int | None = None) -> TelemetryError:
        """An error about the record given last (or about `line`), with file and line in front."""
        return TelemetryError(f"{self.name}:{self.line if line is None else line}: {message}")

    def integer(self, record: Record, key: str) -> int:
        """The integer under `key` of the record given last; raises TelemetryError naming what was found."""
        value = record.get(key)
        if type(value) is float and value.is_integer() and abs(value) < 1 << 63:
            return int(value)  # jq writes 1000000000000000000 as 1e18
        if type(value) is not int:
            found = "nothing" if key not in record else _shown(json.dumps(value))
            raise self.error(f"{key}: found {found}, accepted an integer (record of kind {record['kind']!r})")
        return value

    def _readable(self, timeout_s: float) -> bool:
        import select

        try:
            return bool(select.select([self._stream], [], [], max(0.0, timeout_s))[0])
        except (OSError, ValueError, TypeError):  # not a descriptor (a BytesIO): it never makes one wait
            return True

    def _parse(self, line: bytes) -> tuple[int, Record] | None:
        self._lines_read += 1
        try:
            text = line.decode()
            try:
                record, end = _scan(text, 0)  # a third of the time of json.loads, which looks for white space first
            except StopIteration:
                record, end = None, -1
            if end != len(text):
                if not text.strip():
                    return None
                record = json.loads(text)
        except (ValueError, RecursionError):
            raise self._not_a_record(line) from None
        if type(record) is not dict or type(record.get("kind")) is not str:
            raise self._not_a_record(line)
        self.records += 1
        return self._lines_read, record

    def _not_a_record(self, line: bytes) -> TelemetryError:
        accepted = 'accepted one JSON object with a "kind" per line'
        return self.error(f"found {_shown(line.decode(errors='replace'))}, {accepted}", line=self._lines_read)

    def _last_line(self) -> list[tuple[int, Record]]:
        line, self._rest = self._rest, b""
        if not line.strip():
            return []
        try:
            item = self._parse(line)
        except TelemetryError:
            if line.lstrip()[:1] != b"{":  # never the beginning of a record
                raise
            self.truncated += 1
            return []
        return [item] if item is not None else []


def _shown(text: str, limit: int = 60) -> str:
    """What was found, short enough for one line of an error."""
    text = text.strip()
    return repr(text if len(text) <= limit else text[:limit] + "…")


def quantile(ordered: Sequence[int], q: float) -> int:
    """The exact q-quantile of samples in ascending order, by nearest rank: the smallest sample that at least q·n of
    the samples do not exceed (sample number ceil(q·n), counted from 1; q = 0 gives the smallest). It is always a value
    that was measured. Raises ValueError without samples or outside 0..1."""
    if not ordered or not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile {q} of {len(ordered)} samples: accepted 0 to 1 of at least one sample")
    # q has no exact binary form: without the tolerance q·n can come out just above a whole rank and take the next one.
    return ordered[max(1, math.ceil(q * len(ordered) * (1 - 1e-12))) - 1]


def jitter(arrivals_ns: Iterable[int], period_ns: int) -> Iterator[int]:
    """J(i) = t(i) − (t(i−1) + T) for each arrival but the first: how late (or early, negative) each message is after
    the one before it, against the period T (thesis 5.1.3). n arrivals give n − 1 values, in nanoseconds."""
    previous: int | None = None
    for arrival in arrivals_ns:
        if previous is not None:
            yield arrival - (previous + period_ns)
        previous = arrival


def summary(metric: str, samples: Iterable[int], *, lost: int = 0, late: int = 0) -> Record:
    """A summary record over samples in nanoseconds, with exactly the keys of the contract.

    Quantiles are exact (`quantile`); mean and standard deviation (of the population, divisor n) are rounded to whole
    nanoseconds from exact integer sums. Raises ValueError when there is no sample.
    """
    ordered = sorted(samples)
    count = len(ordered)
    if not count:
        raise ValueError("a summary needs at least one sample")
    total = sum(ordered)
    squares = sum(value * value for value in ordered)
    quantiles = {key: quantile(ordered, q) for key, q in QUANTILES}
    return summary_record(
        metric, count=count, lost=lost, late=late, minimum=ordered[0], maximum=ordered[-1], total=total,
        squares=squares, quantiles=quantiles,
    )  # fmt: skip


def summary_record(
    metric: str,
    *,
    count: int,
    lost: int,
    late: int,
    minimum: int,
    maximum: int,
    total: int,
    squares: int,
    quantiles: Mapping[str, int],
) -> Record:
    """A summary record from figures already gathered: sum and sum of squares as exact integers, `quantiles` by key
    (p50_ns, p90_ns, p99_ns, p999_ns)."""
    return {
        "kind": "summary", "metric": metric, "count": count, "lost": lost, "late": late,
        "min_ns": minimum, **{key: quantiles[key] for key, _ in QUANTILES}, "max_ns": maximum,
        # All in integers: large offsets cost no digits. n·Σx² − (Σx)² is n² times the variance.
        "mean_ns": (2 * total + count) // (2 * count),
        "stddev_ns": (math.isqrt(4 * (count * squares - total * total)) + count) // (2 * count),
    }  # fmt: skip
