# SPDX-License-Identifier: Apache-2.0
import io
import json
import math
import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos import telemetry
from libqos.telemetry import Reader, TelemetryError, Writer, jitter, quantile, summary

INT64 = st.integers(-(2**63), 2**63 - 1)


def lines(buffer: io.BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in buffer.getvalue().splitlines()]


class Counting(io.BytesIO):
    """Counts what reaches the operating system, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.writes += 1
        return super().write(data)


def test_latency_sample_has_the_shape_of_the_contract() -> None:
    buffer = io.BytesIO()
    with Writer(buffer) as writer:
        writer.latency(7, 1500, ts_ns=10**18)
        writer.latency(8, 1600, ts_ns=10**18, jitter_ns=-3)
        writer.latency(9, 1700, ts_ns=10**18, topic="a\n\u2028b")
    assert lines(buffer) == [
        {"kind": "latency", "ts_ns": 10**18, "seq": 7, "latency_ns": 1500},
        {"kind": "latency", "ts_ns": 10**18, "seq": 8, "latency_ns": 1600, "jitter_ns": -3},
        {"kind": "latency", "ts_ns": 10**18, "seq": 9, "latency_ns": 1700, "topic": "a\n\u2028b"},
    ]


def test_line_is_written_at_once_and_in_one_write() -> None:
    stream = Counting()
    writer = Writer(stream)
    writer.latency(1, 2)
    assert stream.writes == 1
    assert stream.getvalue().endswith(b"}\n")


def test_half_a_surrogate_pair_is_written_as_its_escape() -> None:
    stream = io.BytesIO()
    Writer(stream).write({"kind": "x", "text": "\ud800"})
    assert stream.getvalue() == b'{"kind":"x","text":"\\ud800"}\n'


def test_batch_is_written_at_close() -> None:
    stream = Counting()
    with Writer(stream, batch=True) as writer:
        for number in range(100):
            writer.latency(number, 2)
        assert stream.writes == 0
    assert stream.writes == 1
    assert len(lines(stream)) == 100


def test_batch_is_bounded() -> None:
    stream = Counting()
    writer = Writer(stream, batch=True)
    for number in range(10_000):
        writer.latency(number, 2)
    assert stream.writes > 1


def test_short_write_is_continued() -> None:
    class Short(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            return super().write(data[:5])

    stream = Short()
    Writer(stream).write({"kind": "info", "text": "longer than five"})
    assert lines(stream) == [{"kind": "info", "text": "longer than five"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [({"a": 1}, "without a kind"), ({"kind": "x", "v": math.nan}, "not JSON"), ({"kind": "x", "v": b""}, "not JSON")],
)
def test_writer_refuses_what_breaks_the_contract(record: dict[str, object], message: str) -> None:
    with pytest.raises(TelemetryError, match=message):
        Writer(io.BytesIO()).write(record)


@given(st.lists(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | INT64 | st.text(), max_size=4)))
def test_what_is_written_is_read_back(records: list[dict[str, object]]) -> None:
    records = [{"kind": "x", **record} | {"kind": "x"} for record in records]
    buffer = io.BytesIO()
    with Writer(buffer, batch=True) as writer:
        for record in records:
            writer.write(record)
    assert list(Reader(io.BytesIO(buffer.getvalue()))) == records


@given(st.binary(max_size=200))
def test_reader_gives_records_or_one_error_whatever_the_bytes(data: bytes) -> None:
    """Rubbish: a TelemetryError with a line that exists, and nothing else."""
    found = None
    try:
        assert all(isinstance(record["kind"], str) for record in Reader(io.BytesIO(data)))
    except TelemetryError as error:
        found = error
    if found is not None:
        assert 1 <= int(str(found).split(":")[1]) <= data.count(b"\n") + 1


@given(st.lists(st.integers(1, 40), max_size=6))
def test_chunks_do_not_matter(sizes: list[int]) -> None:
    data = b"".join(b'{"kind":"x","n":%d}\n' % number for number in range(5))

    class Chunks(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(sizes.pop() if sizes else -1)

    assert [record["n"] for record in Reader(Chunks(data))] == [0, 1, 2, 3, 4]


def test_error_names_file_line_found_and_accepted(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"kind":"latency","seq":1}\n\nlatency=3\n')
    with Reader(str(path)) as reader, pytest.raises(TelemetryError) as caught:
        list(reader)
    assert str(caught.value) == f"{path}:3: found 'latency=3', accepted one JSON object with a \"kind\" per line"


@pytest.mark.parametrize("line", ["[1]", "3", "null", '{"a":1}', '{"kind":5}', '{"kind":"x"} {"kind":"x"}', '"kind"'])
def test_json_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(TelemetryError, match="stream:1: found"):
        list(Reader(io.BytesIO(line.encode() + b"\n")))


def test_deeply_nested_line_is_refused() -> None:
    with pytest.raises(TelemetryError, match="stream:1"):
        list(Reader(io.BytesIO(b'{"kind":' + b"[" * 200_000 + b"\n")))


def test_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(telemetry, "_READ_BYTES", 100)
    with pytest.raises(TelemetryError, match="stream:2: found a line of more than 1000 bytes"):
        list(Reader(io.BytesIO(b'{"kind":"x"}\n' + b"x" * 5000)))


def test_truncated_last_line_is_counted() -> None:
    reader = Reader(io.BytesIO(b'{"kind":"x"}\n{"kind":"y"}\n{"kind":"lat'))
    assert [record["kind"] for record in reader] == ["x", "y"]
    assert (reader.truncated, reader.records) == (1, 2)


def test_last_line_may_lack_its_newline() -> None:
    reader = Reader(io.BytesIO(b'{"kind":"x"}\r\n{"kind":"y"}'))
    assert [record["kind"] for record in reader] == ["x", "y"]
    assert reader.truncated == 0


def test_last_line_that_never_was_a_record_is_an_error() -> None:
    with pytest.raises(TelemetryError, match="stream:2"):
        list(Reader(io.BytesIO(b'{"kind":"x"}\ntrailing rubbish')))


def test_missing_file() -> None:
    with pytest.raises(TelemetryError, match="/no/such: cannot be read: No such file"):
        Reader("/no/such")


def test_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="directory"):
        list(Reader(str(tmp_path)))


def test_batches_give_an_empty_list_when_nothing_comes() -> None:
    receiving, sending = os.pipe()
    with open(receiving, "rb", buffering=0) as stream, open(sending, "wb", buffering=0) as sink:
        batches = Reader(stream).batches(timeout_s=0.01)
        assert next(batches) == []
        sink.write(b'{"kind":"x"}\n{"kind":"half')
        batch = next(item for item in batches if item)
        assert batch == [(1, {"kind": "x"})]
        assert next(batches) == []
        sink.write(b'"}\n')
        assert next(item for item in batches if item) == [(2, {"kind": "half"})]


def test_integer_says_what_it_found() -> None:
    reader = Reader(io.BytesIO(b'{"kind":"latency","latency_ns":1.5}\n{"kind":"latency","latency_ns":true}\n'))
    records = iter(reader)
    for found in ("1.5", "true"):
        record = next(records)
        with pytest.raises(TelemetryError, match=f"latency_ns: found '{found}', accepted an integer"):
            reader.integer(record, "latency_ns")
    with pytest.raises(TelemetryError, match="stream:2: seq: found nothing"):
        reader.integer(record, "seq")


def test_whole_number_is_an_integer_however_it_is_written() -> None:
    reader = Reader(io.BytesIO(b'{"kind":"latency","ts_ns":1e18,"big":1e300}\n'))
    (record,) = reader
    assert reader.integer(record, "ts_ns") == 10**18
    with pytest.raises(TelemetryError, match="big: found"):
        reader.integer(record, "big")


@given(st.lists(INT64, min_size=1), st.sampled_from([0, 1, 10, 250, 500, 900, 990, 999, 1000]))
def test_quantile_is_the_nearest_rank(values: list[int], permille: int) -> None:
    """The smallest sample that at least q·n samples do not exceed, by the definition and in exact arithmetic."""
    ordered = sorted(values)
    needed = Fraction(permille, 1000) * len(values)
    expected = next(value for value in ordered if sum(other <= value for other in ordered) >= needed)
    assert quantile(ordered, permille / 1000) == expected


@pytest.mark.parametrize("count", [10, 1000, 3000, 7000, 10_000, 1_000_000])
def test_quantile_is_not_a_rank_too_high(count: int) -> None:
    for permille in (500, 900, 990, 999):
        assert quantile(range(1, count + 1), permille / 1000) == -(-count * permille // 1000)


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1], -0.1), ([1], 1.1), ([1], math.nan)])
def test_quantile_refuses(values: list[int], q: float) -> None:
    with pytest.raises(ValueError, match="accepted 0 to 1"):
        quantile(values, q)


def test_jitter_is_arrival_against_the_previous_arrival_plus_the_period() -> None:
    assert list(jitter([1000, 2000, 3100, 3900], 1000)) == [0, 100, -200]
    assert list(jitter([5], 1000)) == []
    assert list(jitter([], 1000)) == []


def test_summary_has_exactly_the_keys_of_the_contract() -> None:
    record = summary("latency", [3, 1, 2, 4], lost=5, late=1)
    assert tuple(record) == telemetry.SUMMARY_KEYS
    assert record == {
        "kind": "summary", "metric": "latency", "count": 4, "lost": 5, "late": 1, "min_ns": 1, "p50_ns": 2,
        "p90_ns": 4, "p99_ns": 4, "p999_ns": 4, "max_ns": 4, "mean_ns": 3, "stddev_ns": 1,
    }  # fmt: skip


@given(st.lists(INT64, min_size=1))
def test_summary_is_in_order_and_integral(values: list[int]) -> None:
    record = summary("x", values)
    ranks = [record[key] for key in ("min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")]
    assert ranks == sorted(ranks)
    assert all(type(record[key]) is int for key in record if key.endswith("_ns"))
    assert record["min_ns"] <= record["mean_ns"] <= record["max_ns"]


def test_stddev_keeps_its_digits_far_from_zero() -> None:
    assert summary("x", [10**18, 10**18 + 2000])["stddev_ns"] == 1000


def test_summary_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summary("x", [])
