# SPDX-License-Identifier: Apache-2.0
"""lunar-pub and lunar-sub as a person uses them, on a daemon of the test's own."""

from __future__ import annotations

import base64
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lunar.framing import frame

TOPIC = "test/topic"
BIN = Path(sys.executable).parent
UGLY = b"one\n\n\xff\xfe\0two \r\n\ttabs\nlast without newline"


def records(text: bytes | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_arrive_byte_by_byte(daemon: Any) -> None:
    sub = daemon.subscribe("--count", "5")
    assert daemon.publish(UGLY) == (0, b"", "")
    assert sub.end() == (0, UGLY + b"\n", b"")


def test_a_file_arrives_whole(daemon: Any, tmp_path: Path) -> None:
    lines = b"".join(b"%d %s\n" % (number, b"x" * (number % 200)) for number in range(50_000))
    with (tmp_path / "out").open("wb") as out:
        sub = daemon.subscribe("--count", "50000", "-v", stdout=out)
    code, _, err = daemon.publish(lines, "-v")
    assert code == 0
    published = records(err)[0]
    assert published["kind"] == "published"
    assert (published["count"], published["dropped"]) == (50_000, 0)
    assert published["size_bytes"] == len(lines) - 50_000
    code, _, err = sub.end()
    assert code == 0
    assert (tmp_path / "out").read_bytes() == lines
    received = records(err)[0]
    assert received["kind"] == "received"
    assert [received[key] for key in ("count", "lost", "duplicated", "reordered", "dropped")] == [50_000, 0, 0, 0, 0]


def test_a_line_does_not_wait_for_the_next_one(daemon: Any) -> None:
    sub = daemon.subscribe()
    pub = daemon.start("lunar-pub", TOPIC, "--wait-for-subscriber")
    for line in (b"first\n", b"second\n"):
        pub.write(line)
        assert sub.read_line() == line
    pub.write(b"no newline")
    assert pub.end()[0] == 0
    assert sub.read_line() == b"no newline\n"


@pytest.mark.parametrize("option", ["--relayed", "--wait=spin", "--stream=7", "--qos=slow-any,delivery=reliable"])
def test_options_of_the_connection(daemon: Any, option: str) -> None:
    sub = daemon.subscribe(option, "--count", "2")
    assert daemon.publish(b"a\nb\n", option) == (0, b"", "")
    assert sub.end() == (0, b"a\nb\n", b"")


def test_topics_and_streams_are_apart(daemon: Any) -> None:
    # The hashes of these two names are equal: FNV-1a, 64 bits, 4eac0c95540867e4.
    names = "8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ"
    other_stream = daemon.subscribe("--stream", "1", topic=names[0])
    subs = [daemon.subscribe("--count", "1", topic=name) for name in names]
    for name in reversed(names):
        assert daemon.publish(name.encode(), topic=name)[0] == 0
    for name, sub in zip(names, subs, strict=True):
        assert sub.end() == (0, name.encode() + b"\n", b"")
    other_stream.process.send_signal(signal.SIGINT)
    code, out, err = other_stream.end()
    assert (code, out, err.strip()) == (130, b"", b"")


def test_json(daemon: Any) -> None:
    before = time.time_ns()
    sub = daemon.subscribe("--count", "3", "--format", "json")
    assert daemon.publish('grüße "quoted"\n\n'.encode() + b"\xff\0")[0] == 0
    code, out, _ = sub.end()
    assert code == 0
    first, second, third = records(out)
    assert list(first) == ["kind", "topic", "source", "seq", "ts_ns", "sent_ns", "size_bytes", "payload"]
    assert (first["kind"], first["topic"], first["payload"]) == ("message", TOPIC, 'grüße "quoted"')
    assert before < first["sent_ns"] <= first["ts_ns"] < time.time_ns()
    assert [record["seq"] for record in (first, second, third)] == [0, 1, 2]
    assert (second["payload"], second["size_bytes"]) == ("", 0)
    assert "payload" not in third
    assert base64.b64decode(third["payload_base64"]) == b"\xff\0"


def test_records_in_and_out(daemon: Any) -> None:
    messages = [b"", b"one", b"t\0w\no", bytes(65_536)]
    data = b"".join(map(frame, messages))
    sub = daemon.subscribe("--count", "4", "--binary")
    assert daemon.publish(data, "--binary")[0] == 0
    assert sub.end() == (0, data, b"")


# ---- Latency ----


def test_latency_records(daemon: Any) -> None:
    sub = daemon.subscribe("--latency", "--rate", "1000", "--count", "50")
    assert daemon.publish(b"x\n" * 50, "--rate", "1000")[0] == 0
    code, out, _ = sub.end()
    assert code == 0
    samples = records(out)
    assert [list(sample) for sample in samples] == [["kind", "ts_ns", "seq", "latency_ns"]] + [
        ["kind", "ts_ns", "seq", "latency_ns", "jitter_ns"]
    ] * 49
    assert [sample["seq"] for sample in samples] == list(range(50))
    for previous, sample in itertools.pairwise(samples):
        assert sample["latency_ns"] > 0
        assert sample["jitter_ns"] == sample["ts_ns"] - previous["ts_ns"] - 1_000_000
    done = subprocess.run([BIN / "qos-stat"], input=out, capture_output=True, check=True)
    assert [record["count"] for record in records(done.stdout)] == [50, 49]


def test_jitter_against_the_mean_of_the_arrivals(daemon: Any) -> None:
    sub = daemon.subscribe("--latency", "--count", "20")
    assert daemon.publish(b"x\n" * 20, "--rate", "500")[0] == 0
    samples = records(sub.end()[1])
    times = [sample["ts_ns"] for sample in samples]
    for index in range(1, len(times)):
        mean = (times[index] - times[0]) // index
        assert samples[index]["jitter_ns"] == times[index] - times[index - 1] - mean


def test_several_publishers_give_a_loss_record(daemon: Any) -> None:
    sub = daemon.subscribe("--latency", "--count", "4")
    for _ in range(2):
        assert daemon.publish(b"x\ny\n")[0] == 0
    samples = records(sub.end()[1])
    assert [sample.get("seq") for sample in samples] == [0, 1, 0, 1, None]
    assert samples[-1]["kind"] == "loss"
    assert samples[-1]["lost"] == 0


# ---- How they end ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_subscriber(daemon: Any, number: int) -> None:
    sub = daemon.subscribe("-v")
    assert daemon.publish(b"one\n")[0] == 0
    assert sub.read_line() == b"one\n"
    sub.process.send_signal(number)
    code, out, err = sub.end()
    assert (code, out) == (130, b"")
    assert records(err.strip())[0]["count"] == 1


def test_interrupted_publisher_has_sent_what_it_read(daemon: Any) -> None:
    sub = daemon.subscribe("--count", "1")
    pub = daemon.start("lunar-pub", TOPIC, "--wait-for-subscriber")
    pub.write(b"one\n")
    assert sub.end() == (0, b"one\n", b"")
    pub.process.send_signal(signal.SIGINT)
    code, _, err = pub.end()
    assert (code, err.strip()) == (130, b"")


def test_reader_that_leaves_ends_it_quietly(daemon: Any) -> None:
    sub = daemon.subscribe()
    pub = daemon.start("lunar-pub", TOPIC, "--wait-for-subscriber")
    pub.write(b"one\n")
    assert sub.read_line() == b"one\n"
    sub.process.stdout.close()
    assert sub.process.wait(20) == 0  # though nothing more is published
    assert sub.process.stderr.read() == b""


def test_head(daemon: Any) -> None:
    command = f"set -o pipefail; {BIN}/lunar-sub {TOPIC} | head -5"
    with subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=daemon.environment
    ) as shell:
        assert daemon.publish(b"".join(b"%d\n" % number for number in range(1000)))[0] == 0
        out, err = shell.communicate(timeout=20)
        assert (shell.returncode, out, err) == (0, b"0\n1\n2\n3\n4\n", b"")


def test_timeout(daemon: Any) -> None:
    assert daemon.run("lunar-sub", TOPIC, "--timeout", "0.1") == (0, b"", "")
    code, out, err = daemon.run("lunar-sub", TOPIC, "--timeout", "0.1", "--count", "2")
    assert (code, out) == (1, b"")
    assert "nothing arrived for 0.1 s: found 0 messages, accepted 2" in err


def test_nobody_subscribes(daemon: Any) -> None:
    code, _, err = daemon.run("lunar-pub", TOPIC, "--wait-for-subscriber", "0.1", data=b"x\n")
    assert code == 1
    assert f"nobody has subscribed to {TOPIC} within 0.1 s" in err


def test_no_subscriber_is_no_error(daemon: Any) -> None:
    assert daemon.run("lunar-pub", TOPIC, data=b"x\n" * 10_000) == (0, b"", "")


# ---- Rate and loss ----


def test_rate(daemon: Any) -> None:
    sub = daemon.subscribe("--count", "101")
    code, _, err = daemon.publish(b"x\n" * 101, "--rate", "1000")
    assert code == 0
    record = records(err)[0]
    assert record["count"] == 101
    assert record["elapsed_ns"] >= 100_000_000  # never faster than asked for
    assert 0 <= record["late_mean_ns"] <= record["late_max_ns"]
    assert record["late"] <= 100
    assert sub.end()[0] == 0


def test_best_effort_drops_for_a_slow_subscriber_and_says_so(daemon: Any) -> None:
    sub = daemon.subscribe()
    sub.process.send_signal(signal.SIGSTOP)
    code, _, err = daemon.publish(b"x\n" * 20_000, "--qos", "slow", "-v")
    assert code == 0
    warning, summary = err.splitlines()
    dropped = json.loads(summary)["dropped"]
    assert 0 < dropped < 20_000
    assert warning == (
        f"lunar-pub: warning: {dropped} messages were dropped: subscribers were too slow for best-effort delivery"
    )


def test_reliable_waits_for_a_slow_subscriber(daemon: Any, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        sub = daemon.subscribe("--count", "20000", stdout=out)
    sub.process.send_signal(signal.SIGSTOP)
    pub = daemon.start("lunar-pub", TOPIC, "--wait-for-subscriber")
    pub.write(b"x\n" * 20_000)
    sub.process.send_signal(signal.SIGCONT)
    assert pub.end()[0] == 0
    code, _, err = sub.end()
    assert (code, err) == (0, b"")
    assert (tmp_path / "out").read_bytes() == b"x\n" * 20_000


# ---- Bad input ----


def test_long_line_is_an_error_with_its_number(daemon: Any) -> None:
    sub = daemon.subscribe("--count", "2")
    code, _, err = daemon.publish(b"one\ntwo\n" + b"x" * 65_537 + b"\nfour\n")
    assert code == 2
    assert "stdin:3: found a line of " in err
    assert "accepted at most 65536 (--skip-long leaves it out)" in err
    assert sub.end() == (0, b"one\ntwo\n", b"")


def test_longest_line(daemon: Any) -> None:
    sub = daemon.subscribe("--count", "1")
    assert daemon.publish(b"x" * 65_536 + b"\n")[0] == 0
    assert sub.end() == (0, b"x" * 65_536 + b"\n", b"")


def test_long_lines_are_left_out(daemon: Any) -> None:
    sub = daemon.subscribe("--count", "2")
    code, _, err = daemon.publish(b"one\n" + b"x" * 200_000 + b"\nthree\n", "--skip-long")
    assert code == 0
    assert "1 messages were left out: too long" in err
    assert sub.end() == (0, b"one\nthree\n", b"")


def test_line_too_long_for_other_hosts(hosts: Any) -> None:
    a, b = hosts
    lines = b"one\n" + b"x" * 65_000 + b"\n" + b"x" * 65_428 + b"\nfour\n"
    sub = b.subscribe()
    code, _, err = a.publish(lines)
    assert code == 2
    assert "stdin:3: found a line of 65428 bytes, accepted at most one datagram" in err
    assert [len(sub.read_line()) for _ in range(2)] == [4, 65_001]
    code, _, err = a.publish(lines, "--skip-long")
    assert (code, err) == (0, "lunar-pub: warning: 1 messages were left out: too long\n")
    assert [len(sub.read_line()) for _ in range(3)] == [4, 65_001, 5]


def test_record_that_is_cut_off(daemon: Any) -> None:
    code, _, err = daemon.run("lunar-pub", TOPIC, "--binary", data=frame(b"one") + b"\5\0")
    assert code == 2
    assert "stdin:2: the record is cut off" in err


@pytest.mark.parametrize("command", ["lunar-pub", "lunar-sub"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["t" * 256], "found 256 bytes, accepted 1 to 255"),
        (["ü" * 128], "found 256 bytes, accepted 1 to 255"),
        ([""], "found 0 bytes, accepted 1 to 255"),
        ([b"\xff"], "found bytes that are no UTF-8"),
        ([TOPIC, "--qos", "quick"], "QoS: found 'quick'"),
        ([TOPIC, "--qos", "delivery=perhaps"], "accepted best-effort | reliable"),
        ([TOPIC, "--rate", "0"], "found '0', accepted a number above 0"),
        ([TOPIC, "--rate", "nan"], "found 'nan', accepted a number above 0"),
    ],
)
def test_wrong_usage(daemon: Any, command: str, arguments: list[Any], complaint: str) -> None:
    code, out, err = daemon.run(command, *arguments)
    assert (code, out) == (2, b"")
    assert complaint in err


def test_topic_behind_the_option_with_a_value(daemon: Any) -> None:
    code, _, err = daemon.run("lunar-pub", "--wait-for-subscriber", TOPIC)
    assert code == 2
    assert "put TOPIC in front of the option" in err


@pytest.mark.parametrize(
    "arguments", [["--binary", "--latency"], ["--latency", "--format", "json"], ["--binary", "--format", "json"]]
)
def test_one_kind_of_output(daemon: Any, arguments: list[str]) -> None:
    code, _, err = daemon.run("lunar-sub", TOPIC, *arguments)
    assert code == 2
    assert "accepted one of them" in err


def test_longest_topic(daemon: Any) -> None:
    topic = "t" * 255
    sub = daemon.subscribe("--count", "1", topic=topic)
    assert daemon.publish(b"x\n", topic=topic)[0] == 0
    assert sub.end()[:2] == (0, b"x\n")


@pytest.mark.parametrize("command", ["lunar-pub", "lunar-sub"])
def test_no_daemon(daemon: Any, tmp_path: Path, command: str) -> None:
    code, out, err = daemon.run(command, TOPIC, "--socket", str(tmp_path / "none.sock"))
    assert (code, out) == (1, b"")
    assert str(tmp_path / "none.sock") in err
    assert "Traceback" not in err


def test_semantics_of_brokers_are_said_to_be_reliable(daemon: Any) -> None:
    code, _, err = daemon.run("lunar-pub", TOPIC, "--qos", "control", data=b"x\n")
    assert code == 0
    assert "exactly-once is a semantic of brokers; here it is reliable" in err


def test_help_needs_no_client_library() -> None:
    script = (
        "import sys, lunar.pub, lunar.sub; print([m for m in sys.modules if m.startswith(('selene', 'libqos._core'))])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- Two hosts ----


def test_two_hosts(hosts: Any, tmp_path: Path) -> None:
    a, b = hosts
    lines = b"".join(b"%d\n" % number for number in range(20_000))
    subs = []
    for number, host in enumerate((b, b, a)):
        with (tmp_path / f"out{number}").open("wb") as file:
            subs.append(host.subscribe("--count", "20000", "-v", stdout=file))
    code, _, err = a.publish(lines, "-v")
    assert code == 0
    assert records(err)[0]["dropped"] == 0
    for number, sub in enumerate(subs):
        code, _, err = sub.end()
        assert code == 0
        assert (tmp_path / f"out{number}").read_bytes() == lines
        assert records(err)[0]["lost"] == 0
