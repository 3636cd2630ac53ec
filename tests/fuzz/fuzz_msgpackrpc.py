# SPDX-License-Identifier: Apache-2.0
"""The same bytes, whole and one at a time, give the same events and the same complaint; and what was read can be sent.

The first byte says how many calls of ours wait for an answer, and how tight the bounds are."""

import contextlib

from libqos.codec.msgpackrpc import Connection, Event, Limits, LocalError, RemoteError, Request, Response

TIGHT = Limits(message_bytes=64, values=20, depth=4, calls_in=2)
STEPS = [0]  # messages


def _read(how: int, data: bytes, step: int) -> tuple[list[Event], str, Connection]:
    connection = Connection(TIGHT if how & 16 else None)
    for _ in range(how & 15):
        connection.request("get", [])
    if how & 32:
        connection.abandon(0)
    events: list[Event] = []
    try:
        for begin in range(0, len(data), step):
            connection.receive(data[begin : begin + step])
            while (event := connection.next_event()) is not None:
                events.append(event)
    except RemoteError as error:
        return events, str(error), connection
    return events, "", connection


def test_one_input(data: bytes) -> None:
    how, said = data[0] if data else 0, data[1:]
    events, complaint, connection = _read(how, said, len(said) or 1)
    one_at_a_time = _read(how, said, 1)
    # repr: NaN is not equal to itself
    assert (repr(events), complaint) == (repr(one_at_a_time[0]), one_at_a_time[1])
    assert len(connection._scanner._buffer) <= len(said)
    STEPS[0] += len(events)
    for event in events:
        with contextlib.suppress(LocalError):  # a float of 32 bits goes back as one of 64, which may be too large
            match event:
                case Request(number, method, params):
                    connection.respond(number, params)
                    connection.notify(method, params)
                case Response(_, error, result):
                    connection.notify("again", [error, result])
