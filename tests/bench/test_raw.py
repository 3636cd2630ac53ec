# SPDX-License-Identifier: Apache-2.0
"""The raw C baselines: they build cleanly, and what they print can be relied on."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import build, link, procs  # noqa: E402

pytestmark = pytest.mark.needs_gcc


@pytest.mark.parametrize("source", sorted(build.RAW.glob("*.c")), ids=lambda path: path.stem)
def test_raw_programs_compile_without_a_warning(source: Path, tmp_path: Path) -> None:
    build.compile_program(source, compile_flags=["-Werror"], cache=tmp_path)


@pytest.mark.parametrize("size", [8, 64, 8192])
@pytest.mark.parametrize("mode", ["blocking", "busy", "yield"])
def test_raw_udp_round_trips(mode: str, size: int) -> None:
    program = str(build.raw("udp-pingpong"))
    if mode == "busy" and len(procs.usable_cpus()) < 2:
        pytest.skip("two busy programs on one CPU take turns by time slice")
    place = ["127.0.0.1", str(link.free_udp_port("127.0.0.1")), "--mode", mode, "--size", str(size)]
    record = link.server_and_client(
        [program, "server", *place],
        [program, "client", *place, "--count", "200"],
        server_cpus=procs.usable_cpus()[:1],
        client_cpus=procs.usable_cpus()[-1:],
    )
    assert (record["count"], record["lost"], record["size_bytes"], record["mode"]) == (200, 0, size, mode)
    assert 0 < record["min_ns"] <= record["p50_ns"] <= record["p90_ns"] <= record["p99_ns"] <= record["max_ns"]
    assert record["cpu_ns"] > 0
    # A spinning server's time may lag by a tick, which is longer than this run.
    assert record["server_cpu_ns"] > 0 or mode != "blocking"


@pytest.mark.parametrize(
    "command", [["eventfd-pingpong"], ["spsc-pingpong", "--mode", "yield"], ["spsc-flood", "--mode", "yield"]]
)
def test_raw_local_programs(command: list[str]) -> None:
    cpus = procs.usable_cpus()
    record = procs.run([
        str(build.raw(command[0])), *command[1:], "--count", "5000", "--cpu", str(cpus[0]), "--peer-cpu", str(cpus[-1])
    ])  # fmt: skip
    assert record["count"] == 5000
    assert record["lost"] == 0


@pytest.mark.parametrize("mode", ["sendto", "sendmmsg", "gso"])
def test_raw_flood_counts_every_datagram_it_received(mode: str) -> None:
    program = str(build.raw("udp-flood"))
    place = ["127.0.0.1", str(link.free_udp_port("127.0.0.1")), "--count", "2000"]
    with procs.Process([program, "receiver", *place]) as receiver:
        receiver.wait_ready()
        assert procs.run([program, "sender", *place, "--mode", mode, "--batch", "16"])["count"] == 2000
        record = receiver.result()
    assert 0 < record["count"] <= 2000
    assert record["count"] + record["lost"] == 2000
