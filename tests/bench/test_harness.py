# SPDX-License-Identifier: Apache-2.0
"""The bench harness: statistics with known answers, verdicts, rounds, processes, and one bench from end to end."""

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import build, env, link, pairs, procs, selene, stats  # noqa: E402
from harness.bench import Bench, parser  # noqa: E402

WATCHDOG_S = 120


def write_program(folder: Path, text: str) -> list[str]:
    program = folder / "program.py"
    program.write_text(text)
    return [sys.executable, str(program)]


def constant(**record: float) -> pairs.Run:
    return lambda: {"kind": "summary", **record}


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([7.0], 0.5, 7.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.5), ([0.0, 10.0], 0.9, 9.0),
     ([5.0, 1.0], 0.0, 1.0), ([5.0, 1.0], 1.0, 5.0)],
)  # fmt: skip
def test_percentile_interpolates(values: list[float], share: float, expected: float) -> None:
    assert stats.percentile(values, share) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0, float("nan")], 0.5), ([1.0], 1.1)])
def test_percentile_refuses_what_has_no_answer(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        stats.percentile(values, share)


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert stats.bootstrap_interval([1.5] * 15) == (1.5, 1.5)


def test_bootstrap_repeats_and_lies_around_the_median() -> None:
    rng = random.Random(7)
    values = [rng.gauss(10.0, 1.0) for _ in range(101)]
    low, high = stats.bootstrap_interval(values)
    assert (low, high) == stats.bootstrap_interval(values)
    assert low < stats.median(values) < high
    # The standard error of a normal sample's median is 1.2533 sigma / sqrt(n); 90 % of it is 1.645 to either side.
    assert high - low == pytest.approx(2 * 1.645 * 1.2533 / 101**0.5, rel=0.5)


def test_bootstrap_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = random.Random(3)
    covered = 0
    for _ in range(200):
        low, high = stats.bootstrap_interval([rng.gauss(0.0, 1.0) for _ in range(25)], resamples=200)
        covered += low <= 0.0 <= high
    assert 0.83 <= covered / 200 <= 0.97


@pytest.mark.parametrize(
    ("text", "spread", "kept"),
    [("<=1.1", (1.0, 1.1), True), ("<=1.1", (1.0, 1.11), False), ("<0.5", (0.1, 0.5), False),
     (">=5e6", (5e6, 9e6), True), (">=5e6", (4.9e6, 9e6), False), (">1", (1.0, 2.0), False),
     ("<=150", (-20.0, 150.0), True)],
)  # fmt: skip
def test_target_is_kept_only_by_the_unfavourable_end(text: str, spread: stats.Interval, kept: bool) -> None:
    assert stats.Target.parse(text).kept_by(spread) is kept


@pytest.mark.parametrize("text", ["1.1", "=1.1", "<=", "<=fast"])
def test_target_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"target|float"):
        stats.Target.parse(text)


@pytest.mark.parametrize(
    ("null", "count", "expected"),
    [(1.0, 15, True), (1.05, 15, True), (0.95, 15, True), (1.06, 15, None), (0.94, 15, None), (1.0, 14, None)],
)
def test_verdict_needs_the_null_test_and_fifteen_pairs(null: float, count: int, expected: bool | None) -> None:
    assert stats.verdict(stats.Target.parse("<=1.1"), (1.0, 1.05), [null] * count, count) is expected


def test_verdict_without_baseline_needs_three_runs() -> None:
    target = stats.Target.parse(">=10")
    assert stats.verdict(target, (9.0, 12.0), None, 3) is False
    assert stats.verdict(target, (11.0, 12.0), None, 2) is None
    assert stats.verdict(None, (11.0, 12.0), None, 3) is None


# --- pairs -----------------------------------------------------------------------------------------------------------


def comparison(project: float, *metrics: pairs.Metric) -> pairs.Comparison:
    return pairs.Comparison(
        "row", "raw", constant(p50_ns=100.0), constant(p50_ns=project), metrics, labels={"size_bytes": 64}
    )


def rounds_of(row: pairs.Comparison, count: int = 15, seed: int = 1) -> list[pairs.Round]:
    return pairs.run_rounds(row, count, random.Random(seed), lambda number, made: None)


@pytest.fixture(autouse=True)
def nothing_is_stolen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of these tests take microseconds: one tick of a hypervisor would spoil them."""
    monkeypatch.setattr(pairs, "stolen_s", lambda: 0.0)


@pytest.mark.parametrize(
    ("tries", "runs", "again", "disturbed"), [(4, 5, [2, 0], 0), (2, 4, [1, 0], 1), (1, 3, [0, 0], 2)]
)
def test_rounds_with_stolen_time_are_made_again(
    monkeypatch: pytest.MonkeyPatch, tries: int, runs: int, again: list[int], disturbed: int
) -> None:
    """The hypervisor takes time during the first two tries, none later."""
    stolen = iter([*[0.0] * 5, 1.0, 1.0, 1.5, *[1.5] * 8])
    monkeypatch.setattr(pairs, "stolen_s", lambda: next(stolen))
    monkeypatch.setattr(pairs, "STOLEN_PAUSE_S", 0.0)
    metric = pairs.Metric("rtt_p50_ratio", "p50_ns")
    records = []

    def project() -> dict[str, float]:
        records.append({"p50_ns": 120.0})
        return records[-1]

    row = pairs.Comparison("row", "raw", constant(p50_ns=100.0), project, [metric])
    made = pairs.run_rounds(row, 2, random.Random(1), lambda number, round_: None, tries)
    assert len(records) == runs, "one of them before the rounds"
    assert [round_.again for round_ in made] == again
    result = pairs.compared("demo", row, metric, made)
    assert (result["again"], result["disturbed"]) == (sum(again), disturbed)


@pytest.mark.parametrize(("failures", "stolen", "runs"), [(2, 1.0, 3), (1, 0.0, 1), (9, 1.0, 4)])
def test_what_fails_while_time_is_stolen_is_run_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, stolen: float, runs: int
) -> None:
    """Nothing is stolen any more when it does not fail."""
    monkeypatch.setattr(pairs, "STOLEN_PAUSE_S", 0.0)
    taken, count = 0.0, 0

    def run() -> int:
        nonlocal taken, count
        count += 1
        if count <= failures:
            taken += stolen
            raise procs.RunError("watchdog")
        return count

    monkeypatch.setattr(pairs, "stolen_s", lambda: taken)
    if runs <= failures:
        with pytest.raises(procs.RunError):
            pairs.undisturbed(run, 1)
    else:
        assert pairs.undisturbed(run, 1) == (runs, 0.0, runs - 1)
    assert count == runs


def test_rounds_hold_each_role_once_in_a_random_order() -> None:
    made = rounds_of(comparison(120.0), 60)
    assert all(sorted(round_.order) == sorted(pairs.ROLES) for round_ in made)
    assert {round_.order[0] for round_ in made} == set(pairs.ROLES)
    assert [round_.order for round_ in made] == [round_.order for round_ in rounds_of(comparison(120.0), 60)]


def test_result_line_has_what_the_table_of_targets_asks_for() -> None:
    metric = pairs.Metric("rtt_p50_ratio", "p50_ns", "<=1.3")
    row = comparison(120.0, metric)
    result = pairs.compared("demo", row, metric, rounds_of(row))
    assert result.pop("values") == [1.2] * 15
    assert result == {
        "kind": "result", "bench": "demo", "metric": "rtt_p50_ratio", "value": 1.2, "spread": [1.2, 1.2],
        "unit": "ratio", "baseline": "raw", "size_bytes": 64, "target": "<=1.3", "ok": True, "base": 100.0,
        "base_unit": "ns", "null": 1.0, "null_ok": True, "pairs": 15, "disturbed": 0, "again": 0,
    }  # fmt: skip


def test_difference_and_own_figure_are_scaled() -> None:
    difference = pairs.Metric("overhead", "p50_ns", "<=5", how="difference", unit="ns", scale=0.5)
    own = pairs.Metric("own", "p50_ns", ">=1", how="project", unit="us", scale=1e-3)
    row = comparison(120.0, difference, own)
    made = rounds_of(row)
    assert pairs.compared("demo", row, difference, made)["value"] == 10.0
    assert pairs.compared("demo", row, difference, made)["ok"] is False
    assert pairs.compared("demo", row, own, made)["value"] == 0.12


def test_a_baseline_that_does_not_repeat_itself_decides_only_what_is_not_relative_to_it() -> None:
    ratio = pairs.Metric("ratio", "p50_ns", "<=2")
    own = pairs.Metric("own", "p50_ns", "<=200", how="project", unit="ns")
    row = comparison(120.0, ratio, own)
    drifting = [
        pairs.Round(pairs.ROLES, {"baseline": {"p50_ns": 100}, "null": {"p50_ns": 110}, "project": {"p50_ns": 120}})
    ] * 15
    assert pairs.compared("demo", row, ratio, drifting)["ok"] is None
    assert pairs.compared("demo", row, ratio, drifting)["null"] == 1.1
    assert pairs.compared("demo", row, own, drifting)["ok"] is True


def test_absolute_is_the_median_of_its_runs() -> None:
    metric = pairs.Metric("rate", "rate_per_s", ">=100", unit="per_s")
    row = pairs.Absolute("rate", constant(), [metric])
    records: list[procs.Record] = [{"rate_per_s": value} for value in (90, 130, 120)]
    result = pairs.absolute("demo", row, metric, records)
    assert (result["value"], result["ok"], result["runs"], result["baseline"]) == (120.0, False, 3, None)


@pytest.mark.parametrize("record", [{}, {"p50_ns": None}, {"p50_ns": "9"}, {"p50_ns": True}])
def test_a_record_without_the_figure_is_an_error_not_a_zero(record: procs.Record) -> None:
    with pytest.raises(procs.RunError, match="p50_ns"):
        pairs.figure(record, "p50_ns")


def test_a_baseline_of_zero_has_no_ratio() -> None:
    with pytest.raises(procs.RunError, match="no ratio"):
        pairs.Metric("ratio", "p50_ns").compare({"p50_ns": 1}, {"p50_ns": 0})


# --- bench -----------------------------------------------------------------------------------------------------------


def options(*arguments: str) -> argparse.Namespace:
    return parser("demo", "").parse_args(arguments)


def printed(capsys: pytest.CaptureFixture[str]) -> list[procs.Record]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_bench_writes_samples_environment_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(options("--out", str(tmp_path / "out"), "--runs", "15"), "demo")
    bench.compare(comparison(120.0, pairs.Metric("rtt_p50_ratio", "p50_ns", "<=1.3")))
    assert bench.finish() == 0
    lines = printed(capsys)
    assert [line["kind"] for line in lines] == ["pair"] * 15 + ["result"]
    assert lines[-1]["ok"] is True
    assert "values" not in lines[-1]
    out = tmp_path / "out"
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 45
    assert {sample["role"] for sample in samples} == set(pairs.ROLES)
    assert json.loads((out / "environment.json").read_text())["bench"] == "demo"
    assert json.loads((out / "results.jsonl").read_text())["values"] == [1.2] * 15


def test_a_row_that_fails_is_reported_and_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> procs.Record:
        raise procs.RunError("no luck")

    metric = pairs.Metric("ratio", "p50_ns")
    bench = Bench(options("--runs", "1"), "demo")
    bench.compare(pairs.Comparison("bad", "raw", constant(p50_ns=1), fails, [metric]))
    bench.measure(pairs.Absolute("good", constant(p50_ns=3), [metric]))
    assert bench.finish() == 1
    results = [line for line in printed(capsys) if line["kind"] == "result"]
    assert results[0]["value"] is None
    assert results[0]["ok"] is None
    assert results[0]["error"] == "no luck"
    assert results[1]["value"] == 3.0


def test_only_leaves_the_other_rows_out(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(options("--only", "good", "--runs", "1"), "demo")
    for name in ("bad", "good"):
        bench.measure(pairs.Absolute(name, constant(p50_ns=3), [pairs.Metric(name, "p50_ns")]))
    bench.skip("bad", "not asked for")
    assert bench.finish() == 0
    assert {line.get("metric", line.get("row")) for line in printed(capsys)} == {"good"}


def test_environment_says_what_a_figure_must_be_read_with() -> None:
    record = env.environment()
    assert record["kind"] == "environment"
    assert record["kernel"] == os.uname().release
    assert record["cpus_usable"] == sorted(os.sched_getaffinity(0))
    for key in ("cpu_model", "clocksource", "load", "python", "compiler", "revision", "build_options", "bench_flags"):
        assert key in record
    json.dumps(record)


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_program_runs_on_the_cpus_it_was_given(tmp_path: Path) -> None:
    program = write_program(tmp_path, "import json, os\nprint(json.dumps({'cpus': sorted(os.sched_getaffinity(0))}))\n")
    for cpu in procs.usable_cpus():
        assert procs.run(program, cpus=[cpu]) == {"cpus": [cpu]}


def test_place_moves_every_thread(tmp_path: Path) -> None:
    program = write_program(
        tmp_path,
        "import threading, signal\nthreading.Thread(target=signal.pause, daemon=True).start()\n"
        'print(\'{"kind":"ready"}\', flush=True)\nsignal.pause()\n',
    )
    last = procs.usable_cpus()[-1]
    with procs.Process(program) as process:
        process.wait_ready()
        procs.place(process.pid, [last])
        tasks = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        assert {tuple(os.sched_getaffinity(task)) for task in tasks} == {(last,)}


def test_the_last_record_is_the_result_and_other_lines_are_passed_over(tmp_path: Path) -> None:
    program = write_program(tmp_path, "print('hello')\nprint('{\"a\":1}')\nprint('[2]')\nprint('{\"a\":3}')\n")
    assert procs.run(program) == {"a": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [("import sys\nprint('{}')\nsys.exit('broken')\n", "status 1: broken"), ("print('nothing')\n", "no JSON record")],
)
def test_a_failed_run_says_what_and_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(procs.RunError, match=message):
        procs.run(write_program(tmp_path, text))


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(procs.RunError, match="no-such-program"):
        procs.run(["no-such-program"])


def test_a_silent_program_times_out_and_is_stopped(tmp_path: Path) -> None:
    with procs.Process(write_program(tmp_path, "import signal\nsignal.pause()\n")) as process:
        with pytest.raises(procs.RunError, match="timed out"):
            process.result(timeout_s=0.05)
        assert process.running()
    assert not Path(f"/proc/{process.pid}").exists()


def test_stop_takes_children_along_even_in_sessions_of_their_own(tmp_path: Path) -> None:
    program = write_program(
        tmp_path,
        "import json, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], start_new_session=True)\n"
        "print(json.dumps({'kind': 'ready', 'child': child.pid}), flush=True)\nchild.wait()\n",
    )
    with procs.Process(program) as process:
        child = next(process.records())["child"]
        ended = os.pidfd_open(child)
        assert procs.descendants(process.pid) == [child]
    # A pidfd becomes readable when its process ends, whoever may have to reap it.
    assert select.select([ended], [], [], WATCHDOG_S)[0]
    os.close(ended)


def test_cpu_time_grows_with_work_and_ends_with_the_process() -> None:
    before = procs.cpu_time_ns(os.getpid())
    sum(range(100_000))
    assert procs.cpu_time_ns(os.getpid()) > before
    with procs.Process(["true"]) as process:
        process.wait()
        with pytest.raises(procs.RunError):
            procs.cpu_time_ns(process.pid)


# --- hosts, builds, the project's side -------------------------------------------------------------------------------


def test_only_namespaces_of_dead_harnesses_are_stale() -> None:
    with procs.Process(["true"]) as process:
        process.wait()
        listing = f"qosb-{process.pid}-a (id: 3)\nqosb-{process.pid}-b\nqosb-{os.getpid()}-a\nother\nqosb-x-a\n"
        assert link.stale_namespaces(listing) == [f"qosb-{process.pid}-a", f"qosb-{process.pid}-b"]


@pytest.mark.needs_gcc
def test_a_build_is_made_once_and_again_after_an_edit(tmp_path: Path) -> None:
    source = tmp_path / "one.c"
    source.write_text("int main(void) { return 0; }\n")
    first = build.compile_program(source, cache=tmp_path / "cache")
    made = first.stat().st_mtime_ns
    assert build.compile_program(source, cache=tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made
    (tmp_path / "shared.h").write_text("/* edited */\n")
    assert build.compile_program(source, cache=tmp_path / "cache") != first
    source.write_text("no C\n")
    with pytest.raises(procs.RunError, match=r"one\.c"):
        build.compile_program(source, cache=tmp_path / "cache")


def test_daemons_that_are_not_built_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selene, "SELENED", tmp_path / "selened")
    with pytest.raises(procs.RunError, match="selened"), selene.selene_local():
        pass


def test_a_daemon_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "selened"
    program.write_text('#!/bin/sh\ncat "$2" >&2\nexit 2\n')
    program.chmod(0o755)
    monkeypatch.setattr(selene, "SELENED", program)
    with pytest.raises(procs.RunError, match=r'address = "127\.0\.0\.1"'), selene.selene_local():
        pass


FAKE_DAEMON = f"""#!{sys.executable}
import signal, socket, subprocess, sys
config, path = sys.argv[2], sys.argv[4]
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control.bind(path)
control.listen()
open(path + ".config", "w").write(open(config).read())
open(path + ".status", "w").close()
signal.pause()
"""


def test_a_pair_of_daemons_knows_each_other_and_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "selened"
    program.write_text(FAKE_DAEMON)
    program.chmod(0o755)
    monkeypatch.setattr(selene, "SELENED", program)
    wire = link.Link(link.Host("127.0.0.1", None), link.Host("127.0.0.2", None), "loopback")
    with selene.selene_pair(wire) as pair:
        a, b = (
            tomllib.loads(Path(f"{daemon.environment['SELENE_SOCKET']}.config").read_text())
            for daemon in (pair.a, pair.b)
        )
        assert a == {"address": "127.0.0.1", "port": a["port"], "peers": [{"address": "127.0.0.2", "port": b["port"]}]}
        assert b["peers"] == [{"address": "127.0.0.1", "port": a["port"]}]
        last = procs.usable_cpus()[-1]
        pair.place([last], [last])
        pids = [*pair.a.pids(), *pair.b.pids()]
        assert len(pids) == 4
        assert {tuple(os.sched_getaffinity(pid)) for pid in pids} == {(last,)}
        assert pair.a.cpu_ns() >= pair.a.datapath_cpu_ns() >= 0
        ended = [os.pidfd_open(pid) for pid in pids]
    for descriptor in ended:
        assert select.select([descriptor], [], [], WATCHDOG_S)[0]
        os.close(descriptor)
    assert not pair.a.socket.parent.exists()


@pytest.mark.needs_gcc
@pytest.mark.timeout(WATCHDOG_S)
@pytest.mark.parametrize(
    ("name", "row", "baseline"),
    [("selene-latency", "direct-yield-1cpu", "udp-pingpong"), ("lunar-local", "blocking-1cpu-64B", "eventfd-pingpong"),
     ("selene-throughput", "gso-1024B", "udp-flood")],
)  # fmt: skip
def test_bench_end_to_end_with_the_baseline_on_both_sides(name: str, row: str, baseline: str, tmp_path: Path) -> None:
    program = build.raw(baseline)
    command = [sys.executable, str(BENCH / name), "--quick", "--runs", "2", "--only", row, "--out", str(tmp_path)]
    done = subprocess.run([*command, "--project-cmd", str(program)], capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    results = [record for record in records if record["kind"] == "result"]
    assert records[-1] is results[-1]
    assert {record["pairs"] for record in results} == {2}
    assert {record["ok"] for record in results} == {None}
    assert results[0]["value"] > 0  # others may be nothing, such as what was lost
    assert (tmp_path / "samples.jsonl").exists()
    assert (tmp_path / "plot.png").exists() or "no plot" in done.stderr


@pytest.mark.needs_gcc
@pytest.mark.needs_root
@pytest.mark.needs_netns
@pytest.mark.timeout(WATCHDOG_S)
def test_an_interrupted_bench_leaves_no_namespace_and_no_process() -> None:
    program = str(build.raw("udp-pingpong"))
    command = [sys.executable, str(BENCH / "selene-latency"), "--only", "direct-yield", "--project-cmd", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bench:
        assert bench.stdout is not None
        for line in bench.stdout:
            if json.loads(line)["kind"] == "pair":
                break
        started = procs.descendants(bench.pid)
        bench.send_signal(signal.SIGINT)
        bench.communicate(timeout=WATCHDOG_S)
        assert bench.returncode == 130
        assert (
            f"qosb-{bench.pid}-"
            not in subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout
        )
    for pid in started:
        assert not Path(f"/proc/{pid}").exists()
