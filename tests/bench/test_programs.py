# SPDX-License-Identifier: Apache-2.0
"""The C programs on libraries: SELENE's own, and those that Lunar is compared with."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import link, peers, procs, selene  # noqa: E402

pytestmark = pytest.mark.needs_gcc

SEED_LINES = 189  # thesis 5.3, table 5.2: the C benchmark on SELENE
COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|/\*.*?\*/|//[^\n]*', re.DOTALL)


def lines_of_code(file: Path) -> int:
    """Count as cloc does, without blank lines and comments."""
    if shutil.which("cloc"):
        counted = subprocess.run(["cloc", "--csv", "--quiet", str(file)], check=True, capture_output=True, text=True)
        return int(counted.stdout.strip().splitlines()[-1].split(",")[-1])
    code = COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else "", file.read_text())
    return sum(1 for line in code.splitlines() if line.strip())


def test_the_benchmark_is_shorter_than_that_of_the_thesis() -> None:
    assert 0 < lines_of_code(selene.BENCH_SOURCE) < SEED_LINES


@pytest.fixture(scope="module")
def daemon() -> Iterator[selene.Daemon]:
    with selene.selene_local() as running:
        yield running


def flood(daemon: selene.Daemon, flood: selene.Flood, **options: int) -> procs.Record:
    cpus = procs.usable_cpus()
    return selene.run_flood(flood, daemon, daemon, source_cpus=cpus[-1:], sink_cpus=cpus[:1], **options)


@pytest.mark.parametrize("sinks", [1, 3])
def test_a_flood_loses_nothing(daemon: selene.Daemon, sinks: int) -> None:
    record = flood(daemon, selene.Flood(64, 20_000, burst=8), sinks=sinks)
    assert (record["count"], record["lost"], record["dropped"], record["kernel_lost"]) == (20_000, 0, 0, 0)
    assert record["rate_per_s"] > 0
    assert record["send_cpu_ns"] >= record["source_cpu_ns"] > 0


def test_a_paced_flood_tells_latency(daemon: selene.Daemon) -> None:
    record = flood(daemon, selene.Flood(64, 50, rate=1000, coalesce=False))
    assert record["lost"] == 0
    assert record["latency_p50_ns"] > 0


def test_a_stopped_sink_does_not_keep_best_effort_from_the_others(daemon: selene.Daemon) -> None:
    record = flood(daemon, selene.Flood(64, 20_000, best_effort=True), sinks=1, stopped=1)
    assert record["count"] == 20_000
    assert record["rate_per_s"] > 0
    assert record["dropped"] > 0


@pytest.mark.parametrize("command", [["pingpong-server"], ["flood-sink", "--count", "10"]])
def test_sigterm_ends_who_waits_for_messages(daemon: selene.Daemon, command: list[str]) -> None:
    with procs.Process([str(selene.selene_bench()), *command], environment=daemon.environment) as process:
        process.wait_ready()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["flood-sink", "--size"], ["flood-sink", "--sise", "64"]])
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    done = subprocess.run([selene.selene_bench(), *arguments], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "usage: selene-pingpong" in done.stderr


def programs() -> list[tuple[str, peers.Peer | None]]:
    return [("lunar", None), *((peer.name, peer) for peer in (peers.ZEROMQ, peers.CYCLONE_DDS))]


@pytest.mark.parametrize(("name", "peer"), programs(), ids=lambda value: value if isinstance(value, str) else "")
def test_peers_answer_and_lose_nothing(daemon: selene.Daemon, name: str, peer: peers.Peer | None) -> None:
    host = link.Host("127.0.0.1", None)
    try:
        program = str(peer.build() if peer else peers.lunar_program())
    except peers.MissingError as error:
        pytest.skip(str(error))
    environment = peer.environment(host, host) if peer else daemon.environment
    base = ["127.0.0.1", "127.0.0.1", "--port", str(link.free_udp_port("127.0.0.1"))]
    record = link.server_and_client(
        [program, "server", *base],
        [program, "client", *base, "--count", "200"],
        server_cpus=procs.usable_cpus(),
        client_cpus=procs.usable_cpus(),
        server_environment=environment,
        client_environment=environment,
    )
    assert record["count"] == 200
    assert 0 < record["min_ns"] <= record["p50_ns"] <= record["max_ns"]
    with procs.Process([program, "subscriber", *base, "--count", "5000"], environment=environment) as subscriber:
        subscriber.wait_ready()
        sent = procs.run([program, "publisher", *base, "--count", "5000"], environment=environment)
        got = subscriber.result()
    assert (sent["count"], got["count"], got["lost"]) == (5000, 5000, 0)
    assert got["rate_per_s"] > 0
