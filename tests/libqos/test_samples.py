# SPDX-License-Identifier: Apache-2.0
import io
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos import samples
from libqos.samples import Metric, Sequence, Statistics
from libqos.telemetry import Reader, TelemetryError, Writer, summary


def gather(records: Iterable[dict[str, object]], **options: object) -> Statistics:
    stream = io.BytesIO()
    with Writer(stream, batch=True) as writer:
        for record in records:
            writer.write(record)
    statistics = Statistics(**options)  # type: ignore[arg-type]
    reader = Reader(io.BytesIO(stream.getvalue()))
    for record in reader:
        statistics.add(reader, record)
    return statistics


def sample(seq: int, latency_ns: int, **extra: object) -> dict[str, object]:
    return {"kind": "latency", "ts_ns": 10**18 + seq * 1000, "seq": seq, "latency_ns": latency_ns, **extra}


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50), st.integers(-100, 100))
def test_exact_metric_is_the_summary_of_its_samples(values: list[int], limit: int) -> None:
    metric = Metric("latency", bounded=False, late_above=limit)
    for value in values:
        metric.add(value)
    assert metric.summary(3) == summary("latency", values, lost=3, late=sum(value > limit for value in values))


def test_metric_goes_on_after_a_summary() -> None:
    metric = Metric("latency", bounded=True, late_above=None)
    metric.add(1)
    assert metric.summary(0)["count"] == 1
    metric.add(3)
    assert metric.summary(0) == summary("latency", [1, 3])


def test_more_than_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        Metric("x", bounded=False, late_above=None).add(2**63)


@pytest.mark.parametrize("shift", [0, -20_000])
def test_bounded_metric_keeps_its_error(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the exact part: quantiles within 1/128, everything else exact, with negative values too."""
    pytest.importorskip("libqos._core")
    monkeypatch.setattr(samples, "EXACT_SAMPLES", 1000)
    generator = random.Random(3)
    values = [int(generator.lognormvariate(9.5, 0.8)) + shift for _ in range(30_000)]
    metric = Metric("jitter", bounded=True, late_above=40_000)
    for value in values:
        metric.add(value)
    exact = summary("jitter", values, late=sum(abs(value) > 40_000 for value in values))
    found = metric.summary(0)
    assert not metric._samples
    for key, value in exact.items():
        if key.startswith("p"):
            assert abs(found[key] - value) <= abs(value) / 128 + 1, key
        else:
            assert found[key] == value, key


def test_bounded_metric_does_not_grow() -> None:
    pytest.importorskip("libqos._core")
    metric = Metric("latency", bounded=True, late_above=None)
    for value in range(3 * samples.EXACT_SAMPLES):
        metric.add(value)
    assert len(metric._samples) + len(metric._new) <= samples.EXACT_SAMPLES


@given(st.permutations(range(30)), st.sets(st.integers(0, 29), max_size=29), st.lists(st.integers(0, 29), max_size=5))
def test_losses_are_the_numbers_between_the_ends_that_never_came(
    order: list[int], dropped: set[int], repeated: list[int]
) -> None:
    """In any order, with any repetition: exact, counted from the first number that came."""
    arriving = [number for number in order if number not in dropped] + [n for n in repeated if n not in dropped]
    sequence = Sequence()
    for number in arriving:
        sequence.add(number)
    if arriving:
        first = arriving[0]
        assert sequence.lost == len({n for n in range(first, max(arriving)) if n not in arriving})
        below = sum(number < first for number in arriving)
        repetitions = len(arriving) - len(set(arriving))
        assert repetitions <= sequence.duplicates <= repetitions + below


def test_restart_of_the_source_is_no_loss() -> None:
    sequence = Sequence()
    for number in [*range(10_000), *range(5)]:
        sequence.add(number)
    assert (sequence.lost, sequence.restarts, sequence.duplicates) == (0, 1, 0)


def test_huge_gap_takes_no_memory() -> None:
    sequence = Sequence()
    sequence.add(0)
    sequence.add(2**62)
    sequence.add(2**63)
    assert sequence.lost == 2**63 - 2
    for number in range(2**63, 2**63 + 600_000, 2):
        sequence.add(number)
    assert len(sequence._missing) <= 2 * 65_536


def test_default_metrics_are_latency_and_jitter() -> None:
    statistics = gather([sample(0, 5), sample(1, 7, jitter_ns=-2), {"kind": "info", "latency_ns": "x"}])
    assert [(item["metric"], item["count"]) for item in statistics.summaries()] == [("latency", 2), ("jitter", 1)]


def test_metric_by_name_from_any_kind() -> None:
    records: list[dict[str, object]] = [{"kind": "hop", "rtt_ns": 4}, {"kind": "hop"}, sample(0, 5)]
    (found,) = gather(records, metrics=("rtt",)).summaries()
    assert (found["metric"], found["count"], found["max_ns"]) == ("rtt", 1, 4)


def test_groups_stand_apart() -> None:
    records = [sample(seq, seq * 10, topic="ab"[seq % 2]) for seq in (0, 1, 2, 3, 4, 7)]
    first, second = gather(records, by="topic").summaries()
    assert (first["topic"], first["count"], first["lost"]) == ("a", 3, 2)
    assert (second["topic"], second["count"], second["lost"]) == ("b", 3, 4)
    assert tuple(first)[:-1] == tuple(summary("latency", [1]))


def test_groups_are_bounded() -> None:
    with pytest.raises(TelemetryError, match="stream:1025: size_bytes: found more than 1024 values"):
        gather((sample(n, 1, size_bytes=n) for n in range(1100)), by="size_bytes")


def test_jitter_against_a_period() -> None:
    records = [{**sample(n, 5, jitter_ns=99), "ts_ns": at} for n, at in enumerate([1000, 2000, 3100, 3900])]
    found = list(gather(records, period_ns=1000).summaries())
    assert found[1] == summary("jitter", [0, 100, -200])


def test_files_are_runs_of_their_own() -> None:
    statistics = Statistics(period_ns=1000)
    for _ in range(2):
        reader = Reader(io.BytesIO(b'{"kind":"latency","ts_ns":5,"seq":90,"latency_ns":1}\n'))
        for record in reader:
            statistics.add(reader, record)
        statistics.end_of_file()
    (found,) = statistics.summaries()
    assert (found["count"], found["lost"]) == (2, 0)
    assert list(statistics.remarks()) == []


def test_loss_records_stand_above_gaps() -> None:
    records = [sample(0, 1), sample(5, 1), {"kind": "loss", "lost": 2}, {"kind": "loss", "lost": 1}]
    (found,) = gather(records).summaries()
    assert found["lost"] == 3


def test_remarks_name_what_the_summary_cannot() -> None:
    statistics = gather([sample(n, 1) for n in (0, *range(9000), 1)])
    assert [remark.split(":")[0] for remark in statistics.remarks()] == [
        "1 samples with a sequence number seen before",
        "the sequence started again 1 times",
    ]


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"kind": "latency"}, {}, "stream:1: latency_ns: found nothing, accepted an integer"),
        ({"kind": "latency", "latency_ns": 1.5}, {}, "latency_ns: found '1.5'"),
        (
            {"kind": "latency", "latency_ns": 2**63},
            {},
            "latency_ns: found 9223372036854775808, accepted an integer of 64",
        ),
        (sample(0, 1, jitter_ns="x"), {}, "jitter_ns: found '\"x\"'"),
        ({**sample(0, 1), "seq": "1"}, {}, "seq: found"),
        (sample(0, 1), {"by": "topic"}, "topic: found nothing, accepted a value to group by"),
        (sample(0, 1, topic=[1]), {"by": "topic"}, "topic: found list"),
        ({"kind": "loss", "lost": -1.5}, {}, "lost: found"),
    ],
)
def test_bad_record_names_its_line(record: dict[str, object], options: dict[str, object], message: str) -> None:
    with pytest.raises(TelemetryError) as caught:
        gather([record], **options)
    assert str(caught.value).startswith("stream:1: ")
    assert message in str(caught.value)
