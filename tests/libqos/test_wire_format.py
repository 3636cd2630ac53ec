# SPDX-License-Identifier: Apache-2.0
"""docs/wire-format.md says what libqos/core/frame.c does: its tables and its example hold against encoded bytes."""

import errno
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from libqos._core import ffi, lib

DOC = Path(__file__).resolve().parents[2] / "docs/wire-format.md"
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}

# Worked out by hand from the tables: a header, the record "21.5" padded to eight, the record "ok" without padding.
GOLDEN = bytes.fromhex(
    "5345 01 01 0100 0200 1a00 0000 07000000"  # magic, version, type, flags, count, length, reserved, stream
    "efcdab8967452301 0500000001eeffc0"  # channel, source
    "2900000000000000 00002a36fe9c9717"  # sequence, send_ns
    "0000000000000000 03000000 b2060000"  # launch_ns, epoch, credit
    "00000000 00000000"  # frag_offset, frag_total
    "04000000 00000000 32312e35 00000000"  # length, delta_ns, payload, padding
    "02000000 dc050000 6f6b"
)
GOLDEN_FIELDS = {
    "type": 1,
    "flags": 1,
    "count": 2,
    "length": 26,
    "stream": 7,
    "channel": 0x0123456789ABCDEF,
    "source": 0xC0FFEE01 << 32 | 5,
    "sequence": 41,
    "send_ns": 1_700_000_000 * 10**9,
    "launch_ns": 0,
    "epoch": 3,
    "credit": 1714,
    "frag_offset": 0,
    "frag_total": 0,
}


def section(title: str) -> str:
    """What the page has under a heading."""
    parts = re.split(r"^## ", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(f"{title}\n")]
    return found


def table(title: str, first_column: str) -> list[dict[str, str]]:
    """The rows of the table under a heading whose first column has this name, without backquotes."""
    rows: list[dict[str, str]] = []
    names: list[str] = []
    for line in section(title).splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            names = []
        elif not names:
            names = cells
        elif names[0] == first_column and not re.fullmatch(r":?-+:?", cells[0]):
            rows.append(dict(zip(names, cells, strict=True)))
    assert rows, f"no table {first_column} under {title}"
    return rows


def encode(fields: dict[str, int]) -> bytes:
    out = ffi.new("uint8_t[]", lib.QOS_WIRE_HEADER)
    lib.qos_frame_encode(out, ffi.new("struct qos_wire *", fields))
    return bytes(ffi.buffer(out))


def decode(data: bytes) -> tuple[int, Any]:
    wire = ffi.new("struct qos_wire *")
    return lib.qos_frame_decode(data, len(data), wire), wire


def distinct(size: int) -> int:
    """A number that fills `size` bytes with different ones, none of them 0."""
    return int.from_bytes(bytes(range(0xA1, 0xA1 + size)), "little")


HEADER = table("Header", "offset")


def test_the_table_covers_the_header_without_gaps() -> None:
    at = 0
    for row in HEADER:
        assert int(row["offset"]) == at, row
        at += SIZES[row["type"]]
        assert row["meaning"]
        assert row["filled by"]
    assert at == lib.QOS_WIRE_HEADER


def test_the_table_has_every_field_of_the_struct() -> None:
    fields = dict(ffi.typeof("struct qos_wire").fields)
    assert [row["field"] for row in HEADER if row["field"] not in ("magic", "version", "reserved")] == list(fields)
    for row in HEADER:
        if row["field"] in fields:
            assert ffi.sizeof(fields[row["field"]].type) == SIZES[row["type"]], row


@pytest.mark.parametrize("row", HEADER, ids=lambda row: str(row["field"]))
def test_each_field_lies_where_the_table_says(row: dict[str, str]) -> None:
    fixed = {"magic": b"SE", "version": b"\x01", "reserved": b"\x00\x00"}
    at, size = int(row["offset"]), SIZES[row["type"]]
    if row["field"] in fixed:
        assert encode(GOLDEN_FIELDS)[at : at + size] == fixed[row["field"]]
        return
    zeros = dict.fromkeys(GOLDEN_FIELDS, 0)
    expected = bytearray(encode(zeros))
    assert expected[at : at + size] == bytes(size)
    expected[at : at + size] = distinct(size).to_bytes(size, "little")
    assert encode(zeros | {row["field"]: distinct(size)}) == expected


@pytest.mark.parametrize(("title", "enum"), [("Types", "qos_wire_type"), ("Flags", "qos_wire_flag")])
def test_types_and_flags_are_those_of_the_header(title: str, enum: str) -> None:
    values = {f"QOS_WIRE_{row['name']}": int(row["value"], 0) for row in table(title, "value")}
    assert values == {name: value for value, name in ffi.typeof(f"enum {enum}").elements.items()}


def test_constants_are_those_of_the_header() -> None:
    for row in table("Records", "constant"):
        assert getattr(lib, row["constant"]) == int(row["value"]), row
    assert int(HEADER[0]["meaning"].split(":")[0], 16) == lib.QOS_WIRE_MAGIC
    assert int(HEADER[1]["meaning"]) == lib.QOS_WIRE_VERSION


def test_records_are_laid_out_as_the_table_says() -> None:
    rows = table("Records", "offset")
    values = {"length": distinct(4), "delta_ns": distinct(4) ^ 0x0F0F0F0F}
    out = ffi.new("uint8_t[]", lib.QOS_WIRE_RECORD)
    lib.qos_frame_put_record(out, values["length"], values["delta_ns"])
    made = b"".join(values[row["field"]].to_bytes(SIZES[row["type"]], "little") for row in rows)
    assert [int(row["offset"]) for row in rows] == [0, 4]
    assert bytes(ffi.buffer(out)) == made


def test_the_example_is_the_golden_datagram() -> None:
    text = section("Example")
    lines = re.findall(r"^([0-9a-f]{8})  ((?:[0-9a-f]{2} +)+)\|(.*)\|$", text, flags=re.MULTILINE)
    data = b"".join(bytes.fromhex(line[1]) for line in lines)
    assert data == GOLDEN
    for number, (offset, _, shown) in enumerate(lines):
        assert int(offset, 16) == 16 * number
        printed = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data[16 * number : 16 * number + 16])
        assert shown == printed
    assert {row["field"]: int(row["value"], 0) for row in table("Example", "field")} == GOLDEN_FIELDS


def test_the_encoder_makes_the_golden_datagram() -> None:
    records = ffi.new("uint8_t[]", 26)
    lib.qos_frame_put_record(records, 4, 0)
    ffi.memmove(records + 8, b"21.5", 4)
    lib.qos_frame_put_record(records + 16, 2, 1500)
    ffi.memmove(records + 24, b"ok", 2)
    assert encode(GOLDEN_FIELDS) + bytes(ffi.buffer(records)) == GOLDEN


def test_the_golden_datagram_is_decoded() -> None:
    rc, wire = decode(GOLDEN)
    assert rc == 0
    assert {name: getattr(wire, name) for name in GOLDEN_FIELDS} == GOLDEN_FIELDS
    # and by a reader that knows nothing but the order of the fields
    numbers = struct.unpack_from("<HBBHHHHIQQQQQIIII", GOLDEN)
    names = [row["field"] for row in HEADER]
    assert {name: value for name, value in zip(names, numbers, strict=True) if name in GOLDEN_FIELDS} == GOLDEN_FIELDS


def test_the_golden_records_are_walked() -> None:
    _, wire = decode(GOLDEN)
    data = ffi.from_buffer(GOLDEN)
    offset, payload = ffi.new("uint32_t *"), ffi.new("const uint8_t **")
    length, delta = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    got = []
    while lib.qos_frame_next(ffi.cast("const uint8_t *", data), wire, offset, payload, length, delta) == 1:
        got.append((bytes(ffi.buffer(payload[0], length[0])), delta[0]))
    assert got == [(b"21.5", 0), (b"ok", 1500)]


@pytest.mark.parametrize(
    ("at", "byte", "error"),
    [(0, 0x54, errno.EPROTO), (2, 2, errno.EPROTONOSUPPORT), (3, 5, errno.EPROTO), (10, 1, errno.EPROTO)],
)
def test_another_header_is_refused(at: int, byte: int, error: int) -> None:
    assert decode(GOLDEN[:at] + bytes([byte]) + GOLDEN[at + 1 :])[0] == -error


def test_the_costs_of_the_example_add_up() -> None:
    assert 848 + len(GOLDEN) + lib.QOS_WIRE_SKB_COST == GOLDEN_FIELDS["credit"]


@pytest.mark.parametrize("row", table("Credit", "sent"), ids=lambda row: str(row["sent"]))
def test_credit_is_counted_modulo_2_to_the_32(row: dict[str, str]) -> None:
    sent, acked, window = (int(row[name], 0) for name in ("sent", "acked", "window"))
    under_way = (sent - acked) % 2**32
    assert int(row["under way"]) == under_way
    assert int(row["left"]) == max(window - under_way, 0)
