# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from libqos import cli
from libqos.stat import stat
from libqos.telemetry import SUMMARY_KEYS

COMMAND = [sys.executable, "-m", "libqos.stat"]


def samples(path: Path, latencies: list[int], **extra: object) -> Path:
    with path.open("w") as stream:
        for seq, value in enumerate(latencies):
            record = {"kind": "latency", "ts_ns": 10**18 + seq * 10**6, "seq": seq, "latency_ns": value, **extra}
            stream.write(json.dumps(record) + "\n")
    return path


def run(*arguments: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.run(stat, [str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def piped(data: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, text=True, timeout=30, check=False)


def test_one_summary_per_metric(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = samples(tmp_path / "s.jsonl", list(range(1, 1001)), jitter_ns=-5)
    status, out, err = run(path, "--deadline", "900ns", capfd=capfd)
    latency, jitter = map(json.loads, out.splitlines())
    assert (status, err) == (0, "")
    assert tuple(latency) == tuple(jitter) == SUMMARY_KEYS
    assert (latency["count"], latency["late"], latency["p50_ns"], latency["p999_ns"]) == (1000, 100, 500, 999)
    assert (jitter["metric"], jitter["mean_ns"], jitter["stddev_ns"], jitter["late"]) == ("jitter", -5, 0, 0)


def test_table_shows_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = samples(tmp_path / "s.jsonl", [1500] * 3)
    status, out, _ = run(path, "--format", "table", "--by", "kind2", capfd=capfd)
    assert (status, out) == (2, "")
    status, out, _ = run(path, "--format", "table", capfd=capfd)
    assert out.splitlines()[1].split()[:4] == ["latency", "3", "0", "0"]
    assert "1.5 µs" in out


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("", 1, "stdin: no records: found nothing, accepted JSON Lines with samples"),
        ('{"kind":"info"}\n', 1, "stdin: no samples: found records of kind info, accepted kind latency"),
        ('{"kind":"info"}\nx\n', 2, "stdin:2: found 'x', accepted one JSON object"),
        ('{"kind":"latency","latency_ns":"fast"}\n', 2, "stdin:1: latency_ns: found '\"fast\"', accepted an integer"),
    ],
)
def test_input_that_cannot_be_used(text: str, status: int, message: str) -> None:
    done = piped(text)
    assert done.returncode == status
    assert done.stderr.startswith(f"qos-stat: error: {message}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_truncated_last_line_is_reported(tmp_path: Path) -> None:
    done = piped('{"kind":"latency","latency_ns":5}\n{"kind":"laten')
    assert done.returncode == 0
    assert json.loads(done.stdout)["count"] == 1
    assert done.stderr == (
        "qos-stat: warning: stdin: the last line is cut off and was left out: its writer did not end well\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "count"], "'count' is a key of the summary itself"),
        (["--deadline", "soon"], "found 'soon', accepted a time such as 250us"),
        (["--interval", "0"], "0.0 is not in the range"),
        (["/no/such"], "/no/such: cannot be read"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, out) == (2, "")
    assert message in err


def test_several_files_make_one_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = samples(tmp_path / "a", [1, 2]), samples(tmp_path / "b", [3, 4])
    _, out, _ = run(one, two, capfd=capfd)
    found = json.loads(out)
    assert (found["count"], found["lost"], found["max_ns"]) == (4, 0, 4)


def follow(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--follow", "--interval", "0.02", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def test_follow_prints_while_it_runs_and_at_the_end() -> None:
    with follow() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for value in (5, 7):
            process.stdin.write(f'{{"kind":"latency","seq":{value},"latency_ns":{value}}}\n')
        process.stdin.flush()
        # Summaries come while the input is open and silent.
        while (running := json.loads(process.stdout.readline()))["count"] < 2:
            pass
        assert running["lost"] == 1
        process.stdin.write('{"kind":"latency","seq":8,"latency_ns":9}\n')
        process.stdin.close()
        last: dict[str, Any] = json.loads(process.stdout.readlines()[-1])
        assert (last["count"], last["max_ns"], process.wait(30)) == (3, 9, 0)


def test_interrupt_still_gives_the_summary() -> None:
    with follow() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"kind":"latency","latency_ns":5}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert json.loads(process.stdout.readlines()[-1])["count"] == 1
        assert process.wait(30) == 130


def test_options_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QOS_STAT_DEADLINE", "1us")
    done = piped('{"kind":"latency","latency_ns":5000}\n')
    assert json.loads(done.stdout)["late"] == 1


def pipelines(page: str) -> list[str]:
    """The commands of a page's section "In a pipeline", with their continuation lines."""
    block = re.search(r"## In a pipeline\n.*?```sh\n(.*?)```", page, re.DOTALL)
    assert block is not None
    lines = block[1].replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def launchers(folder: Path) -> dict[str, str]:
    """An environment where the commands are found by name."""
    folder.mkdir()
    for name in ("stat", "plot"):
        launcher = folder / f"qos-{name}"
        launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m libqos.{name} "$@"\n')
        launcher.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.needs_jq
@pytest.mark.needs_gnuplot
@pytest.mark.parametrize("page", ["qos-stat", "qos-plot"])
def test_pipelines_of_the_page_work(root_dir: Path, tmp_path: Path, page: str) -> None:
    if page == "qos-plot":
        pytest.importorskip("matplotlib")
    environ = launchers(tmp_path / "bin")
    samples(tmp_path / "samples.jsonl", [10_000 + 37 * n % 5000 for n in range(500)], topic="t")
    lines = pipelines((root_dir / f"docs/{page}.md").read_text(encoding="utf-8"))
    assert any("jq" in line for line in lines)
    assert any("gnuplot" in line for line in lines)
    for line in lines:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), line
        written = re.findall(r"[\w.-]+\.(?:png|svgz?)\b", line)
        assert done.stdout or any((tmp_path / name).stat().st_size for name in written), line
