# SPDX-License-Identifier: Apache-2.0
"""The datagram of discovery, byte by byte."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selened.announcement import MAX_BYTES, Announcement, AnnouncementError, decode, encode
from selened.wire import Address

PAGE = Path(__file__).parents[2] / "docs" / "discovery.md"
KEY = b"a secret of some length"
SAID = Announcement(Address("192.168.10.1", 7471), 0x11223344, 0x5566778899AABBCC, 17, 0x0102030405060708, "hall 3")
BYTES = bytes.fromhex(
    "53454c44 01 00 1100 44332211 2f1d 06 00"
    "0000000000000000 0000ffffc0a80a01"
    "ccbbaa9988776655 0807060504030201"
    "68616c6c2033"
)


def counter_of(data: bytes, key: bytes = b"") -> str:
    with pytest.raises(AnnouncementError) as failure:
        decode(data, key)
    return failure.value.counter


def test_the_layout_is_that_of_the_document() -> None:
    assert encode(SAID) == BYTES
    assert bytes.fromhex(PAGE.read_text().split("```")[-2]) == BYTES
    assert decode(BYTES) == SAID
    tagged = BYTES[:5] + b"\1" + BYTES[6:]
    assert encode(SAID, KEY) == tagged + hmac.new(KEY, tagged, hashlib.sha256).digest()


@pytest.mark.parametrize("key", [b"", KEY], ids=["open", "key"])
@pytest.mark.parametrize("ip", ["10.0.0.1", "127.0.0.1", "fd00::1", "2001:db8::7"])
@pytest.mark.parametrize("site", ["", "x" * 63, "Halle für drei"])
def test_what_is_encoded_is_decoded(key: bytes, ip: str, site: str) -> None:
    said = Announcement(Address(ip, 65535), 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0, 0xFFFFFFFFFFFFFFFF, site)
    data = encode(said, key)
    assert len(data) <= MAX_BYTES
    assert decode(data, key) == said


@pytest.mark.parametrize("length", range(len(BYTES)))
def test_what_is_cut_off_is_rubbish(length: int) -> None:
    assert counter_of(BYTES[:length]) == "rubbish"


@pytest.mark.parametrize(
    ("at", "put"),
    [
        (0, b"s"), (5, b"\2"), (15, b"\1"), (12, b"\0\0"), (14, b"\x40"), (14, b"\7"), (48, b"\n"), (48, b"\xff"),
        (16, bytes(16)), (28, b"\xff\xff\xff\xff"), (28, b"\xe0\0\0\1"), (28, bytes(4)),
        (16, bytes.fromhex("fe80000000000000 0000000000000001")), (16, bytes.fromhex("ff02") + bytes(14)),
    ],
)  # fmt: skip
def test_each_field_is_checked(at: int, put: bytes) -> None:
    assert counter_of(BYTES[:at] + put + BYTES[at + len(put) :]) == "rubbish"


def test_more_than_there_is_room_for_is_rubbish() -> None:
    assert counter_of(BYTES + b"\0") == "rubbish"


def test_another_version_is_told_from_rubbish_whatever_follows() -> None:
    assert counter_of(b"SELD\2") == "other_versions"
    assert counter_of(BYTES[:4] + b"\0" + BYTES[5:]) == "other_versions"


def test_only_who_has_the_key_is_believed() -> None:
    data = encode(SAID, KEY)
    assert counter_of(BYTES, KEY) == "unauthenticated"
    assert counter_of(data) == "unauthenticated"
    assert counter_of(encode(SAID, KEY + b"!"), KEY) == "unauthenticated"
    for at in range(6, len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert counter_of(changed, KEY) in ("unauthenticated", "rubbish")


@given(st.binary(max_size=200), st.sampled_from([b"", BYTES, BYTES[:16], BYTES[:48]]), st.sampled_from([b"", KEY]))
def test_whatever_comes_is_decoded_or_refused(data: bytes, start: bytes, key: bytes) -> None:
    """Invariant: nothing but AnnouncementError; what is accepted has one encoding."""
    try:
        said = decode(start + data, key)
    except AnnouncementError:
        return
    assert encode(said, key) == start + data
