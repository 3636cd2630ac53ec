# SPDX-License-Identifier: Apache-2.0
"""The bytes of ptp4l 3.1."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos.codec import ptpmgmt
from libqos.codec.ptpmgmt import Answer, CurrentDataSet, Error, Id, PortDataSet, PortState, TimeStatus

HEADER = "0d02{:04x}00000000000000000000000000000000126e99fffe9997e70002{:04x}047f0000000000000000000100000200"
PORT = bytes.fromhex(HEADER.format(0x50, 1) + "0001001c2004126e99fffe9997e7000204000000000000000000010300010002")
CURRENT = bytes.fromhex(HEADER.format(0x48, 2) + "0001001420010001fffffffffeba00000000000009fa8000")
STATUS = bytes.fromhex(
    HEADER.format(0x68, 3) + "0001" "0034" "c000" "fffffffffffffeba" "18ea787751aeab56" "00000000" "00000000" "0000"
    "000000000000000000000000" "00000001" "fe52c5fffef9b802"
)  # fmt: skip
REFUSED = bytes.fromhex(HEADER.format(0x3C, 4) + "000200080002c00000000000")


def test_a_question() -> None:
    assert ptpmgmt.get(Id.PORT_DATA_SET, 0x1234, domain=24, transport_specific=1).hex() == (
        "1d02" "0036" "1800" "0000" "0000000000000000" "00000000" "00000000000000000001" "1234" "04" "7f"
        "ffffffffffffffffffff" "0000" "00" "00" "0001" "0002" "2004"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (PORT, Answer(1, Id.PORT_DATA_SET, PortDataSet(2, PortState.LISTENING, 0.0))),
        (CURRENT, Answer(2, Id.CURRENT_DATA_SET, CurrentDataSet(1, -326.0, 2554.5))),
        (STATUS, Answer(3, Id.TIME_STATUS_NP, TimeStatus(-326, 1795379855327406934, True, "fe52c5.fffe.f9b802"))),
    ],
)
def test_answers(data: bytes, answer: Answer) -> None:
    assert ptpmgmt.parse(data) == answer
    for end in range(len(data)):
        with pytest.raises(Error, match="found"):
            ptpmgmt.parse(data[:end])


def test_a_question_that_is_refused() -> None:
    with pytest.raises(Error, match="the clock answered NO_SUCH_ID"):
        ptpmgmt.parse(REFUSED)


@pytest.mark.parametrize(
    ("at", "byte", "why"),
    [
        (0, 0x00, "found type 0, version 2"),
        (1, 0x01, "found type 13, version 1"),
        (2, 0xFF, "found lengths"),
        (46, 0x00, "found action 0"),
        (50, 0xFF, "found lengths"),
        (51, 0x03, "data set 0x2004 of 1 bytes"),
        (52, 0x77, "data set 0x7704"),
        (64, 0x0A, "10 is not a valid PortState"),
    ],
)
def test_what_is_no_answer(at: int, byte: int, why: str) -> None:
    data = bytearray(PORT)
    data[at] = byte
    with pytest.raises(Error, match=why):
        ptpmgmt.parse(bytes(data))


@given(st.sampled_from([PORT, CURRENT, STATUS, REFUSED]), st.integers(0, 103), st.binary(min_size=1, max_size=8))
def test_anything_else_is_an_error(data: bytes, at: int, change: bytes) -> None:
    with contextlib.suppress(Error):
        ptpmgmt.parse(data[:at] + change + data[at + len(change) :])
