# SPDX-License-Identifier: Apache-2.0
"""Bytes as the specification has them, whole and one at a time."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos.codec.msgpackrpc import (
    Connection,
    Event,
    Limits,
    LocalError,
    Notification,
    RemoteError,
    Request,
    Response,
)

REQUEST = b"\x94\x00\x07\xa3add\x92\x01\x02"
NOTIFICATION = b"\x93\x02\xa4tick\x90"


def read(data: bytes, connection: Connection | None = None, step: int = 0) -> tuple[list[Event], str]:
    """The events, and the complaint that ended them."""
    connection = connection or Connection()
    events: list[Event] = []
    try:
        for begin in range(0, len(data), step or 1 << 20):
            connection.receive(data[begin : begin + (step or 1 << 20)])
            while (event := connection.next_event()) is not None:
                events.append(event)
    except RemoteError as error:
        return events, str(error)
    return events, ""


class TestReading:
    @pytest.mark.parametrize("step", [0, 1, 3])
    def test_the_three_messages(self, step: int) -> None:
        connection = Connection()
        number, _ = connection.request("get", [])
        assert number == 0
        events, complaint = read(REQUEST + NOTIFICATION + b"\x94\x01\x00\xc0\xa2ok" + REQUEST[:5], connection, step)
        assert complaint == ""
        assert events == [Request(7, "add", [1, 2]), Notification("tick", []), Response(0, None, "ok")]

    def test_a_method_may_be_binary(self) -> None:
        assert read(b"\x93\x02\xc4\x04tick\x90") == ([Notification("tick", [])], "")

    def test_more_is_needed(self) -> None:
        connection = Connection()
        for byte in REQUEST[:-1]:
            connection.receive(bytes([byte]))
            assert connection.next_event() is None
        connection.receive(REQUEST[-1:])
        assert connection.next_event() == Request(7, "add", [1, 2])

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"\xc1", "type 0xc1"),
            (b"\x93\x02\xa1t\x91\xd6\xff\x00\x00\x00\x00", "type 0xd6"),  # a time stamp
            (b"\xc0", "found nil, accepted an array"),
            (b"\x01", "found 1, accepted an array"),
            (b"\x80", "found a map, accepted an array"),
            (b"\x90", "begins with nothing"),
            (b"\x93\x03\xa1t\x90", "begins with 3"),
            (b"\x93\xc2\xa1t\x90", "begins with False"),
            (b"\x94\xc3\x00\xc0\xc0", "begins with True"),
            (b"\x94\x02\xa1t\x90\x00", "array of 4"),
            (b"\x94\x00\xff\xa1t\x90", "found -1 as id"),
            (b"\x94\x00\xc2\xa1t\x90", "found False as id"),
            (b"\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa1t\x90", "found 4294967296 as id"),
            (b"\x94\x00\x01\xc4\x01\xff\x90", "found a method that is not UTF-8"),
            (b"\x94\x00\x01\x05\x90", "found 5 as method"),
            (b"\x94\x00\x01\xa0\x90", "found '' as method"),
            (b"\x94\x00\x01\xd9\x81" + b"m" * 129 + b"\x90", "as method, accepted a string of 1 to 128"),
            (b"\x94\x00\x01\xa1t\x80", "found a map as params"),
            (b"\x93\x02\xa1t\xc0", "found nil as params"),
            (b"\x93\x02\xa1\xff\x90", "utf-8"),
            (b"\x93\x02\xa1t\x91\x82\xa1a\x01\xa1a\x02", "same key twice"),
            (b"\x93\x02\xa1t\x91\x81\xc4\x01a\x01", "key that is no string"),
            (b"\x93\x02\xa1t\x91\x81\x01\x01", "not allowed for map key"),
            (REQUEST + REQUEST, "second call with id 7"),
            (b"\x94\x01\x05\xc0\xc0", "answer with id 5, which no call waits for"),
        ],
    )
    def test_what_is_refused(self, data: bytes, why: str) -> None:
        events, complaint = read(data)
        assert why in complaint
        assert (events, complaint) == read(data, step=1)

    def test_an_answer_is_an_error_or_a_result(self) -> None:
        connection = Connection()
        connection.request("get", [])
        assert read(b"\x94\x01\x00\xa3bad\xa2ok", connection) == (
            [],
            "found an answer with both error and result, accepted one of them",
        )

    def test_after_a_fault_there_is_nothing_more(self) -> None:
        connection = Connection()
        assert read(b"\xc1", connection)[1]
        connection.receive(NOTIFICATION)
        with pytest.raises(RemoteError, match="0xc1"):
            connection.next_event()

    @pytest.mark.parametrize("step", [0, 1])
    def test_sizes_are_bounded(self, step: int) -> None:
        limits = Limits(message_bytes=len(NOTIFICATION))
        assert read(NOTIFICATION * 3, Connection(limits), step) == ([Notification("tick", [])] * 3, "")
        events, complaint = read(NOTIFICATION + REQUEST, Connection(limits), step)
        assert events == [Notification("tick", [])]
        assert complaint == f"found a message of more than {len(NOTIFICATION)} bytes"

    def test_a_size_is_refused_as_soon_as_it_is_said(self) -> None:
        assert "more than 1048576 bytes" in read(b"\x93\x02\xdb\xff\xff\xff\xff")[1]
        assert "more than 16384 values" in read(b"\xdd\xff\xff\xff\xff")[1]
        assert "more than 16384 values" in read(b"\xdf\x00\x00\x20\x01")[1]

    @pytest.mark.parametrize("inner", [b"\x90", b"\x80", b"\x91\xc0"])
    def test_depth_is_bounded(self, inner: bytes) -> None:
        def nested(depth: int) -> bytes:
            return b"\x93\x02\xa1t" + b"\x91" * (depth - 2) + inner

        assert read(nested(16))[1] == ""
        assert read(nested(17))[1] == "found a message with arrays and maps in each other more than 16 deep"

    def test_calls_are_bounded(self) -> None:
        connection = Connection(Limits(calls_in=2))
        data = b"".join(b"\x94\x00" + bytes([number]) + b"\xa1t\x90" for number in range(3))
        events, complaint = read(data, connection)
        assert len(events) == 2
        assert complaint == "found more than 2 calls at a time"


class TestWriting:
    def test_the_bytes(self) -> None:
        connection = Connection()
        assert connection.request("add", [1, 2]) == (0, b"\x94\x00\x00\xa3add\x92\x01\x02")
        assert connection.notify("tick", ()) == NOTIFICATION
        read(REQUEST, connection)
        assert connection.respond(7, 3) == b"\x94\x01\x07\xc0\x03"
        read(REQUEST, connection)
        assert connection.refuse(7, "no") == b"\x94\x01\x07\xa2no\xc0"

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ((1, 2), "tuple"),
            ({1}, "set"),
            ({1: 2}, "key of a map that is no string"),
            (1 << 64, "range"),
            ("\ud800", "surrogates"),
            ([None] * 16384, "more than 16384 values"),
            ("x" * (1 << 20), "accepted 1048576"),
        ],
    )
    def test_what_cannot_be_sent(self, value: Any, why: str) -> None:
        connection = Connection()
        with pytest.raises(LocalError, match=f"set: .*{why}"):
            connection.request("set", [value])
        assert connection.request("set", [0])[0] == 0  # nothing has changed

    def test_too_deep(self) -> None:
        value: list[Any] = []
        value.append(value)
        with pytest.raises(LocalError, match="16 deep"):
            Connection().notify("tick", value)

    @pytest.mark.parametrize("method", ["", "m" * 129, 5])
    def test_a_method_is_a_name(self, method: Any) -> None:
        with pytest.raises(LocalError, match="as method"):
            Connection().notify(method, [])

    def test_only_a_call_is_answered_and_once(self) -> None:
        connection = Connection()
        with pytest.raises(LocalError, match="no call 7"):
            connection.respond(7, 3)
        read(REQUEST, connection)
        with pytest.raises(LocalError, match="None"):
            connection.refuse(7, None)
        with pytest.raises(LocalError, match="object"):
            connection.respond(7, object())
        connection.respond(7, 3)
        with pytest.raises(LocalError, match="no call 7"):
            connection.respond(7, 3)

    def test_calls_are_bounded_and_a_late_answer_is_swallowed(self) -> None:
        connection = Connection(Limits(calls_out=2))
        for _ in range(2):
            connection.abandon(connection.request("get", [])[0])
        assert connection.owed == 2
        with pytest.raises(LocalError, match="2 calls are not answered"):
            connection.request("get", [])
        assert read(b"\x94\x01\x01\xc0\xc0", connection) == ([], "")
        assert connection.owed == 1
        assert connection.request("get", [])[0] == 2

    def test_ids_begin_again_and_leave_out_those_in_use(self) -> None:
        connection = Connection()
        assert connection.request("get", [])[0] == 0
        connection._next_id = (1 << 32) - 1
        assert [connection.request("get", [])[0] for _ in range(2)] == [(1 << 32) - 1, 1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)  # fmt: skip


@given(st.lists(VALUES, max_size=5), st.integers(0, 40))
def test_what_one_side_sends_the_other_takes(params: list[Any], step: int) -> None:
    caller, called = Connection(Limits(depth=40)), Connection(Limits(depth=40))
    number, data = caller.request("do", params)
    assert msgpack.unpackb(data) == [0, number, "do", params]
    assert read(data, called, step) == ([Request(number, "do", params)], "")
    assert read(called.respond(number, params), caller, step) == ([Response(number, None, params)], "")


@given(st.binary(max_size=200), st.integers(1, 7))
def test_however_it_is_cut(data: bytes, step: int) -> None:
    assert read(data) == read(data, step=step)
