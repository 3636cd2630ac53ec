# SPDX-License-Identifier: Apache-2.0
"""Invariant: count, extremes and mean are exact; each quantile is within 1/128 of the sample it stands for."""

import math
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos.hist import HistError, Histogram, Summary

LARGEST = 2**64 - 1


def test_an_empty_histogram_is_all_zero() -> None:
    assert len(Histogram()) == 0
    assert Histogram().summary() == Summary(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)


@given(st.lists(st.integers(0, 2**48), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_within_the_stated_error(values: list[int], share: float) -> None:
    histogram = Histogram()
    histogram.record_many(values)
    summary = histogram.summary()
    assert (summary.count, summary.min, summary.max) == (len(values), min(values), max(values))
    assert summary.mean == pytest.approx(sum(values) / len(values))
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert abs(histogram.quantile(share) - exact) <= exact / 128


@given(st.lists(st.integers(0, 2**40), max_size=50), st.lists(st.integers(0, 2**40), max_size=50))
def test_merging_equals_recording_into_one(some: list[int], others: list[int]) -> None:
    one, two, both = Histogram(), Histogram(), Histogram()
    one.record_many(some)
    two.record_many(others)
    both.record_many(some + others)
    one.merge(two)
    assert one.summary() == both.summary()


@pytest.mark.parametrize("bad", [-1, LARGEST + 1])
def test_a_value_that_does_not_fit_is_refused_and_nothing_recorded(bad: int) -> None:
    histogram = Histogram()
    with pytest.raises(HistError):
        histogram.record_many([1, bad])
    assert len(histogram) == 0
    histogram.record(LARGEST)
    assert histogram.summary().max == LARGEST


def test_a_snapshot_stands_still() -> None:
    histogram = Histogram()
    histogram.record(5)
    copy = histogram.snapshot()
    histogram.record(6)
    assert (len(copy), len(histogram)) == (1, 2)


def test_another_process_reads_what_one_wrote() -> None:
    with mmap.mmap(-1, Histogram.size_bytes()) as memory:
        writer = Histogram.create_in(memory)
        child = os.fork()
        if child == 0:
            writer.record_many(range(1000))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        reader = Histogram.attach(memory)
        assert (len(reader), reader.summary().max) == (1000, 999)
        del reader, writer


def test_foreign_memory_is_refused() -> None:
    with pytest.raises(HistError, match="holds no histogram"):
        Histogram.attach(bytearray(Histogram.size_bytes()))
    with pytest.raises(HistError, match="the buffer has 10"):
        Histogram.attach(bytearray(10))
    with pytest.raises(HistError, match="aligned"):
        Histogram.create_in(memoryview(bytearray(Histogram.size_bytes() + 1))[1:])
