# SPDX-License-Identifier: Apache-2.0
"""UDP over IP in user space, as tshark reads it; the rest is in core/test_udpip.c."""

import subprocess
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

WRITER: Final = Path(__file__).resolve().parents[2] / "build/tests/test_udpip"
FIELDS: Final = (
    "udp.length", "udp.checksum.status", "ip.checksum.status", "vlan.id", "ip.dsfield.dscp", "ipv6.tclass.dscp",
    "udp.dstport", "_ws.expert.severity", "_ws.malformed",
)  # fmt: skip
LENGTHS: Final = (0, 1, 18, 64, 1001, 1472, 8900, 65507)
GOOD: Final = "1"


@pytest.mark.needs_tshark
def test_tshark_dissects_what_we_make_without_complaint(tmp_path: Path) -> None:
    capture = tmp_path / "frames.pcap"
    subprocess.run([WRITER, capture], check=True)
    command = [
        "tshark",
        "-r",
        str(capture),
        "-o",
        "udp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-T",
        "fields",
    ]
    for field in FIELDS:
        command += ["-e", field]
    done = subprocess.run([*command, "-d", "udp.port==4000,data"], capture_output=True, text=True, check=True)
    rows = [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]
    assert Counter(int(row["udp.length"]) - 8 for row in rows) == dict.fromkeys(LENGTHS, 4)
    for number, row in enumerate(rows):
        six, tagged = bool(number & 1), bool(number & 2)
        assert row["udp.checksum.status"] == GOOD
        assert row["ip.checksum.status"] == ("" if six else GOOD)
        assert row["vlan.id"] == ("10" if tagged else "")
        assert (row["ip.dsfield.dscp"], row["ipv6.tclass.dscp"]) == (("", "46") if six else ("46", ""))
        assert row["udp.dstport"] == "4000"
        assert row["_ws.malformed"] == row["_ws.expert.severity"] == ""
