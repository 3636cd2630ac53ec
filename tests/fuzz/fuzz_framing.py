# SPDX-License-Identifier: Apache-2.0
"""Cutting stdin of lunar-pub into messages, and the lines that lunar-sub makes of them: the same bytes whole and in
pieces give the same messages, and what is written is what was read."""

import base64
import json
from dataclasses import dataclass

from lunar.framing import Lines, Records, Splitter, frame
from lunar.sub import BinaryOutput, JsonOutput

LIMIT = 64
STEPS = [0]  # messages


@dataclass
class Message:
    """A received message, as far as an output looks at it."""

    payload: bytes
    sequence: int
    source: int = 1
    sent_ns: int = 0

    def __bytes__(self) -> bytes:
        return self.payload


def _split(splitter: Splitter, pieces: list[bytes]) -> tuple[list[bytes], list[int], int, str | None]:
    messages, numbers = [], []
    for cut in [splitter.feed] * len(pieces) + [lambda _: splitter.end()]:
        piece = pieces.pop(0) if pieces else b""
        found = cut(piece)
        messages += found
        numbers += [splitter.number_of(index) for index in range(len(found))]
    return messages, numbers, splitter.skipped, str(splitter.error) if splitter.error else None


def test_one_input(data: bytes) -> None:
    how = data[0] if data else 0
    make = Records if how & 1 else Lines
    size = 1 + (how >> 2)
    whole = _split(make(LIMIT, skip_long=bool(how & 2)), [data[1:]])
    pieces = [data[at : at + size] for at in range(1, len(data), size)]
    parted = _split(make(LIMIT, skip_long=bool(how & 2)), pieces)
    # the text of an error may say less of a line whose end has not come
    assert whole[:3] == parted[:3]
    assert (whole[3] is None) == (parted[3] is None)
    messages = whole[0]
    STEPS[0] += len(messages)
    assert all(len(message) <= LIMIT for message in messages)
    burst = [Message(payload, number) for number, payload in enumerate(messages)]
    again = Records(LIMIT)
    assert again.feed(BinaryOutput("t", None).lines(burst, 1)) == messages  # type: ignore[arg-type]
    assert b"".join(map(frame, messages)) == BinaryOutput("t", None).lines(burst, 1)  # type: ignore[arg-type]
    if burst:
        for line, message in zip(JsonOutput("t", None).lines(burst, 1).splitlines(), messages, strict=True):  # type: ignore[arg-type]
            record = json.loads(line)
            text = record.get("payload")
            assert (base64.b64decode(record["payload_base64"]) if text is None else text.encode()) == message
