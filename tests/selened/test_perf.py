# SPDX-License-Identifier: Apache-2.0
"""`selene perf`: both ends here, one end each on two hosts, interrupts, and peers that do not come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from libqos.telemetry import SUMMARY_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_S = 30.0
THROUGHPUT_KEYS = ["kind", "role", "messages", "size_bytes", "elapsed_ns", "messages_per_s", "goodput_bits_per_s"]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(socket, *arguments)`: a running `selene perf`."""
    running = []

    def run(socket: Path, *arguments: str) -> subprocess.Popen[str]:
        command = "from selene.cli import main; main()"
        # Ctrl-C has to reach it also where the tests are run in the background, with SIGINT ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", command, "perf", *arguments], text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env={**os.environ, "SELENE_SOCKET": str(socket)}, start_new_session=True,
                )
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def records(process: subprocess.Popen[str], status: int = 0) -> list[dict[str, Any]]:
    """What it printed, when it ends as expected."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status, err
    assert "Traceback" not in err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    "options", [[], ["--relayed"], ["--wait", "spin"], ["--delivery", "reliable"], ["--size", "65536"]]
)
def test_pingpong_prints_a_summary_of_its_round_trips(shared_daemon: Any, start: Any, options: list[str]) -> None:
    (summary,) = records(start(shared_daemon.path, "pingpong", "--count", "200", "--warmup", "10", *options))
    assert list(summary) == list(SUMMARY_KEYS)
    assert (summary["metric"], summary["count"], summary["lost"]) == ("rtt", 200, 0)
    assert 0 < summary["min_ns"] <= summary["p50_ns"] <= summary["max_ns"]


def test_samples_are_those_of_the_summary(shared_daemon: Any, start: Any) -> None:
    *samples, summary = records(
        start(shared_daemon.path, "pingpong", "--count", "50", "--warmup", "0", "--samples", "--rate", "1000")
    )
    assert [(sample["kind"], sample["seq"]) for sample in samples] == [("latency", i) for i in range(50)]
    assert ["jitter_ns" in sample for sample in samples] == [False] + [True] * 49
    arrivals = [sample["ts_ns"] for sample in samples]
    assert [sample["jitter_ns"] for sample in samples[1:]] == [
        after - before - 1_000_000 for before, after in pairwise(arrivals)
    ]
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from libqos.stat import main; main(['--metric', 'latency'])"], input=text,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {**summary, "metric": "latency"}


@pytest.mark.parametrize("options", [[], ["--relayed"], ["--wait", "spin"], ["--size", "0"], ["--rate", "100000"]])
def test_a_reliable_flood_loses_nothing(shared_daemon: Any, start: Any, options: list[str]) -> None:
    found = records(start(shared_daemon.path, "flood", "--count", "20000", "--warmup", "100", *options))
    both = {record["role"]: record for record in found}
    for role, record in both.items():
        assert list(record)[: len(THROUGHPUT_KEYS)] == THROUGHPUT_KEYS
        assert record["kind"] == "throughput"
        assert record["messages_per_s"] == round(record["messages"] * 1e9 / record["elapsed_ns"]), role
    assert both["source"]["messages"] == 20_000
    assert both["sink"]["messages"] > 0
    assert {key: both["sink"][key] for key in ("lost", "duplicated", "reordered", "dropped")} == {
        "lost": 0, "duplicated": 0, "reordered": 0, "dropped": 0
    }  # fmt: skip


def test_what_a_best_effort_flood_loses_is_counted(shared_daemon: Any, start: Any) -> None:
    found = records(
        start(shared_daemon.path, "flood", "--count", "200000", "--warmup", "0", "--delivery", "best-effort")
    )
    both = {record["role"]: record for record in found}
    assert both["sink"]["lost"] == both["sink"]["dropped"] == both["source"]["dropped_slow"]


def test_pingpong_with_one_end_on_each_host(peers: Any, start: Any) -> None:
    left, right = peers
    server = start(right.path, "pingpong", "--server")
    for _ in range(2):  # a server serves one client after the other
        client = start(left.path, "pingpong", "--client", "--count", "100", "--warmup", "10")
        (summary,) = records(client)
        assert (summary["count"], summary["lost"]) == (100, 0)
    server.send_signal(signal.SIGINT)
    assert records(server, 130) == []


def test_flood_with_one_end_on_each_host(peers: Any, start: Any) -> None:
    left, right = peers
    sink = start(right.path, "flood", "--sink")
    source = start(left.path, "flood", "--source", "--count", "20000", "--warmup", "100")
    (sent,), (received,) = records(source), records(sink)
    assert (sent["role"], sent["messages"]) == ("source", 20_000)
    assert (received["role"], received["lost"], received["duplicated"]) == ("sink", 0, 0)


def test_a_table_for_a_person(shared_daemon: Any, start: Any) -> None:
    process = start(shared_daemon.path, "pingpong", "--count", "10", "--warmup", "0", "--format", "table")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out.split()[:4] == ["metric", "count", "lost", "late"]


# ---- Where the time goes ----

SHARES = ["send", "network", "receive", "processing"]


def adds_up(record: dict[str, Any]) -> None:
    assert record["shares"] == SHARES
    assert all(record[f"{share}_ns"] > 0 for share in SHARES)
    assert record["sum_ns"] == sum(record[f"{share}_ns"] for share in SHARES)
    assert record["sum_ns"] == pytest.approx(record["rtt_ns"], rel=0.05)


@pytest.mark.parametrize("options", [[], ["--relayed"], ["--wait", "spin"], ["--delivery", "reliable"]])
def test_the_shares_of_a_round_trip_add_up(shared_daemon: Any, start: Any, options: list[str]) -> None:
    *samples, summary, record = records(
        start(shared_daemon.path, "pingpong", "--breakdown", "--samples", "--count", "400", "--size", "48", *options)
    )
    assert (summary["kind"], summary["count"], summary["lost"]) == ("summary", 400, 0)
    assert (record["kind"], record["metric"], record["size_bytes"], record["count"]) == ("breakdown", "rtt", 48, 200)
    adds_up(record)
    assert [sample["seq"] for sample in samples] == list(range(400))
    for sample in samples:
        assert all(sample[f"{share}_ns"] >= 0 for share in ("send", "receive", "processing"))
        # to the last digit but for what one clock is off the other
        assert sample["network_ns"] == sample["there_ns"] + sample["back_ns"]


@pytest.mark.parametrize("relayed", [[], ["--relayed"]])
def test_the_shares_between_hosts(peers: Any, start: Any, relayed: list[str]) -> None:
    left, right = peers
    server = start(right.path, "pingpong", "--server", *relayed)
    plain = start(left.path, "pingpong", "--client", "--count", "20", "--warmup", "0", *relayed)
    (summary,) = records(plain)
    client = start(left.path, "pingpong", "--client", "--breakdown", "--count", "200", *relayed)
    summary, record = records(client)
    assert (summary["count"], record["count"]) == (200, 100)
    adds_up(record)
    server.send_signal(signal.SIGINT)
    records(server, 130)


def test_the_shares_for_a_person(shared_daemon: Any, start: Any) -> None:
    process = start(shared_daemon.path, "pingpong", "--breakdown", "--count", "40", "--format", "table")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows == ["metric", "rtt", "share", *SHARES, "sum", "rtt"]


# ---- When something is not as it should be ----


@pytest.mark.parametrize(
    ("arguments", "peer"),
    [(["pingpong", "--client"], "server"), (["flood", "--source"], "sink"), (["flood", "--sink"], "source")],
)
def test_the_other_end_does_not_come(shared_daemon: Any, start: Any, arguments: list[str], peer: str) -> None:
    process = start(shared_daemon.path, *arguments, "--timeout", "0.6", "--channel", "77")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    waiting, error = err.splitlines()
    assert f"waiting for the {peer} (selene perf {arguments[0]} --{peer} --stream 0 --channel 77)" in waiting
    assert f"no {peer} on stream 0, channel 77 within 0.6 s; start it" in error


def test_without_a_daemon_it_is_said_once(tmp_path: Path, start: Any) -> None:
    process = start(tmp_path / "nobody.sock", "pingpong")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert "Start it with: selened" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pingpong", "--size", "15"], "16<=x<=65536"),
        (["flood", "--size", "65537"], "0<=x<=65536"),
        (["pingpong", "--rate", "0"], "x>0"),
        (["pingpong", "--breakdown", "--size", "47"], "--breakdown: found --size 47, accepted 48 or more"),
        (["flood", "--count", "0"], "x>=1"),
    ],
)
def test_wrong_usage(shared_daemon: Any, start: Any, arguments: list[str], said: str) -> None:
    process = start(shared_daemon.path, *arguments)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert said in err


def test_an_interrupted_client_still_prints_its_summary(shared_daemon: Any, start: Any, until: Any) -> None:
    server = start(shared_daemon.path, "pingpong", "--server")
    client = start(
        shared_daemon.path, "pingpong", "--client", "--samples", "--rate", "100", "--count", "100000", "--warmup", "0"
    )
    assert json.loads(client.stdout.readline())["kind"] == "latency"
    client.send_signal(signal.SIGINT)
    *_, summary = records(client, 130)
    assert summary["metric"] == "rtt"
    assert 1 <= summary["count"] < 100_000
    server.send_signal(signal.SIGINT)
    records(server, 130)
    until(lambda: not shared_daemon.info("session"), "the end of the sessions")


@pytest.mark.parametrize("whom", ["both ends", "the first process"])
def test_an_interrupted_flood_ends_at_once_and_says_what_it_did(
    shared_daemon: Any, start: Any, until: Any, whom: str
) -> None:
    process = start(shared_daemon.path, "flood", "--count", "1000000000", "--warmup", "0", "--rate", "1000")
    until(lambda: sum(record["kind"] == "sink" for record in shared_daemon.ask("info")) == 3, "both ends")
    until(lambda: any(record.get("messages", 0) > 200 for record in shared_daemon.ask("stats")), "messages")
    if whom == "both ends":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    both = {record["role"]: record for record in records(process, 130)}
    assert both["source"]["messages"] > 0
    assert both["sink"]["messages"] > 0
    until(lambda: not shared_daemon.info("session"), "the end of the sessions")


@pytest.mark.parametrize("measurement", ["pingpong", "flood"])
def test_a_killed_end_takes_the_other_along(shared_daemon: Any, start: Any, until: Any, measurement: str) -> None:
    process = start(shared_daemon.path, measurement, "--count", "1000000000", "--rate", "1000")
    until(lambda: len(shared_daemon.info("session")) == 2, "both ends")
    process.kill()
    until(lambda: not shared_daemon.info("session"), "the end of the other")
