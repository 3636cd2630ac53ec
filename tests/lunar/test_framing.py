# SPDX-License-Identifier: Apache-2.0
"""lunar.framing. Invariant: however the bytes are cut into pieces, the same messages, counts and errors come out."""

import itertools
from collections.abc import Callable, Iterable
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lunar.framing import FramingError, Lines, Records, Splitter, frame

LIMIT = 8


def run(splitter: Splitter, pieces: Iterable[bytes]) -> tuple[list[bytes], str | None, int]:
    """What comes out: messages, the error's text, how many were left out."""
    messages: list[bytes] = []
    numbers: list[int] = []
    steps: list[Callable[[], list[bytes]]] = [*(partial(splitter.feed, piece) for piece in pieces), splitter.end]
    for get in steps:
        got = get()
        messages += got
        numbers += [splitter.number_of(index) for index in range(len(got))]
    assert numbers == sorted(set(numbers))
    if splitter.skipped == 0:
        assert numbers == list(range(1, len(messages) + 1))
    return messages, str(splitter.error) if splitter.error else None, splitter.skipped


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def expected_lines(data: bytes, *, skip_long: bool) -> tuple[list[bytes], bool, int]:
    """The definition: everything between newlines, and what is left at the end."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    fitting = []
    for line in lines:
        if len(line) <= LIMIT:
            fitting.append(line)
        elif not skip_long:
            return fitting, True, 0
    return fitting, False, sum(len(line) > LIMIT for line in lines)


text = st.lists(st.sampled_from([b"\n", b"a", b"bcd", b"\r", b"\0", b"123456789"]), max_size=30).map(b"".join)
places = st.lists(st.integers(0, 100), max_size=20)


@given(text, places, st.booleans())
@example(b"123456789\n12345678\n\n", [], True)
@example(b"123456789", [3], True)
def test_lines(data: bytes, at: list[int], skip_long: bool) -> None:
    messages, error, skipped = run(Lines(LIMIT, skip_long=skip_long), cut(data, at))
    assert (messages, error is not None, skipped) == expected_lines(data, skip_long=skip_long)
    # The number in the error must not depend on the pieces; how much of the line had been seen may.
    whole = run(Lines(LIMIT, skip_long=skip_long), [data])[1]
    assert (error or "").split(" ")[0] == (whole or "").split(" ")[0]


@given(st.lists(st.binary(max_size=LIMIT + 3), max_size=10), places, st.booleans(), st.integers(0, 5))
def test_records(sent: list[bytes], at: list[int], skip_long: bool, missing: int) -> None:
    data = b"".join(map(frame, sent))
    data = data[: len(data) - min(missing, len(frame(sent[-1])) - 1)] if sent else data
    got = run(Records(LIMIT, skip_long=skip_long), cut(data, at))
    assert got == run(Records(LIMIT, skip_long=skip_long), [data])
    assert got == run(Records(LIMIT, skip_long=skip_long), [data[i : i + 1] for i in range(len(data))])
    if not missing and skip_long:
        fitting = [message for message in sent if len(message) <= LIMIT]
        assert got == (fitting, None, len(sent) - len(fitting))


def test_last_line_needs_no_newline() -> None:
    assert run(Lines(LIMIT), [b"one\ntwo"])[0] == [b"one", b"two"]


def test_a_line_is_given_as_soon_as_it_is_complete() -> None:
    splitter = Lines(LIMIT)
    assert splitter.feed(b"one\ntw") == [b"one"]
    assert splitter.feed(b"o\n") == [b"two"]


def test_long_line_is_an_error_with_its_number_after_those_before_it() -> None:
    splitter = Lines(LIMIT, name="stdin")
    assert splitter.feed(b"one\n\n123456789\nfour\n") == [b"one", b""]
    assert str(splitter.error) == ("stdin:3: found a line of 9 bytes, accepted at most 8 (--skip-long leaves it out)")
    assert splitter.feed(b"five\n") == []
    assert splitter.end() == []


def test_long_line_is_an_error_before_its_end() -> None:
    splitter = Lines(LIMIT)
    assert splitter.feed(b"one\n") == [b"one"]
    splitter.feed(b"12345678")
    assert splitter.error is None
    splitter.feed(b"9")
    assert isinstance(splitter.error, FramingError)
    assert str(splitter.error).startswith("stdin:2: found a line of more than 8 bytes")


def test_long_record_is_an_error_with_its_number() -> None:
    splitter = Records(LIMIT)
    assert splitter.feed(frame(b"one") + frame(b"123456789") + frame(b"three")) == [b"one"]
    assert str(splitter.error).startswith("stdin:2: found a record of 9 bytes, accepted at most 8")


@pytest.mark.parametrize("data", [frame(b"one") + b"\3\0", frame(b"one") + b"\3\0\0\0tw"])
def test_record_that_is_cut_off(data: bytes) -> None:
    messages, error, _ = run(Records(LIMIT), [data])
    assert messages == [b"one"]
    assert error is not None
    assert error.startswith("stdin:2: the record is cut off")


def test_numbers_count_what_is_left_out() -> None:
    lines = Lines(LIMIT, skip_long=True)
    assert lines.feed(b"one\n123456789\nthree\n123456789") == [b"one", b"three"]
    assert [lines.number_of(0), lines.number_of(1)] == [1, 3]
    assert lines.feed(b"...\nfive\n") == [b"five"]
    assert lines.number_of(0) == 5
    records = Records(LIMIT, skip_long=True)
    assert records.feed(frame(b"123456789") + frame(b"two")) == [b"two"]
    assert records.number_of(0) == 2


def test_record_framing_is_little_endian() -> None:
    assert frame(b"ab") == b"\2\0\0\0ab"


def test_what_is_kept_is_bounded() -> None:
    splitter = Lines(LIMIT, skip_long=True)
    for _ in range(100):
        assert splitter.feed(b"x" * 100) == []
        assert len(splitter._rest) <= LIMIT
    assert splitter.feed(b"\nend\n") == [b"end"]
    assert splitter.skipped == 1
    assert splitter.number == 2
