# SPDX-License-Identifier: Apache-2.0
"""Profiles of a bench's rows: what perf prints is read, folded and grouped, and adds up to the time of a round trip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import profile, stacks  # noqa: E402
from harness.procs import RunError  # noqa: E402

WATCHDOG_S = 180

# As perf 6.1 prints it.
PRINTED = """\
python3   100/100   [000]    10.000000001: PERF_RECORD_FORK(101:101):(100:100)
python3   101/101   [000]    10.000000002: PERF_RECORD_COMM exec: udp-pingpong-3f:101/101
selened   102/102   [001]    10.000000003: PERF_RECORD_FORK(103:103):(101:101)
selene-pingpong   101/101   [000]    10.000000004: PERF_RECORD_FORK(101:104):(101:101)
udp-pingpong-3f   101/101   [000]    10.000000100:
\tffffffff821fdb89 _raw_spin_unlock_irqrestore ([kernel.kallsyms])
\tffffffff81e2fb7e sock_def_readable ([kernel.kallsyms])
\tffffffff82041f90 __udp_enqueue_schedule_skb ([kernel.kallsyms])
\tffffffff821ea011 do_syscall_64 ([kernel.kallsyms])
\t          10a929 __send (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t            2c9b main (/bench/udp-pingpong-3f)

selened-dp/data   103/105 [001]    10.000000200:
\t            9880 std::f(int)::{lambda(int)#1}::x (/usr/bin/selened-dp)
\tffffffffffffffff [unknown] ([unknown])

swapper     0/0     [001]    11.000000300:
\tffffffff821ef72b pv_native_safe_halt ([kernel.kallsyms])
\tffffffff813c3904 do_idle ([kernel.kallsyms])

swapper     0/0     [001]    11.000000300: PERF_RECORD_LOST lost 7
"""


def sample(*symbols: str, file: str = "[kernel.kallsyms]", pid: int = 1, comm: str = "program") -> stacks.Sample:
    return stacks.Sample(0, 0, pid, comm, tuple(stacks.Frame(symbol, file) for symbol in symbols))


def test_what_perf_prints_is_read() -> None:
    read = stacks.parse(PRINTED.splitlines(keepends=True))
    assert [(s.time_ns, s.cpu, s.pid, s.comm, len(s.frames)) for s in read.samples] == [
        (10_000_000_100, 0, 101, "udp-pingpong-3f", 6),
        (10_000_000_200, 1, 103, "selened-dp/data", 2),
        (11_000_000_300, 1, 0, "swapper", 2),
    ]
    assert read.samples[0].frames[0] == stacks.Frame("_raw_spin_unlock_irqrestore", "[kernel.kallsyms]")
    assert read.samples[1].frames[0] == stacks.Frame("std::f(int)::{lambda(int)#1}::x", "selened-dp")
    assert read.lost == 7


def test_the_family_is_what_the_bench_started_and_what_that_started() -> None:
    read = stacks.parse(PRINTED.splitlines())
    assert read.parents == {101: 100, 103: 101}
    assert read.family(100) == {101, 103}
    assert read.family(101) == {103}


def test_stacks_are_folded_outermost_first_and_counted() -> None:
    read = stacks.parse(PRINTED.splitlines())
    assert stacks.folded([*read.samples[:1], *read.samples[2:], *read.samples[:1]]).splitlines() == [
        "swapper;do_idle_[k];pv_native_safe_halt_[k] 1",
        "udp-pingpong-3f;main;__send;do_syscall_64_[k];__udp_enqueue_schedule_skb_[k];sock_def_readable_[k];"
        "_raw_spin_unlock_irqrestore_[k] 2",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (sample("memset", "__alloc_skb", "udp_sendmsg", "do_syscall_64"), ("network", "__alloc_skb")),
        (sample("_raw_spin_unlock_irqrestore", "sock_def_readable", "udp_rcv"), ("scheduler", "sock_def_readable")),
        (sample("finish_task_switch", "__schedule", "futex_wait"), ("scheduler", "finish_task_switch")),
        (sample("_copy_from_user", "eventfd_write", "vfs_write"), ("event", "eventfd_write")),
        (sample("do_syscall_64"), ("system_call", "do_syscall_64")),
        (sample("native_write_msr", "sysvec_apic_timer_interrupt"), ("interrupt", "sysvec_apic_timer_interrupt")),
        (sample("clear_page_erms", "something_new"), ("kernel", "clear_page_erms")),
        (sample("default_idle", "do_idle", pid=0, comm="swapper"), ("idle", "default_idle")),
        (sample("ip_rcv", "net_rx_action", "do_idle", pid=0, comm="swapper"), ("network", "ip_rcv")),
        (sample("main", file="burner-12", comm="burner-12"), ("idle", "burner")),
        (sample("selene_emit", file="libselene.so.0"), ("library", "selene_emit")),
        (sample("lunar_publish", file="liblunar.so.0"), ("library", "lunar_publish")),
        (sample("dp_data_round", file="selened-dp"), ("datapath", "dp_data_round")),
        (sample("__vdso_clock_gettime", file="[vdso]"), ("libc", "__vdso_clock_gettime")),
        (sample("main", file="selene-pingpong-1f"), ("application", "main")),
        (sample("udp_sendmsg", pid=9, comm="stranger"), ("other", "stranger")),
        (sample("_PyEval", file="libpython3.11.so", comm="selened"), ("other", "selened")),
        (sample(), ("kernel", "unknown")),
    ],
)
def test_a_sample_belongs_to_the_innermost_function_that_is_known(
    given: stacks.Sample, expected: tuple[str, str]
) -> None:
    assert stacks.classify(given, family={1}) == expected


def test_shares_are_those_of_the_measured_part_and_add_up_to_a_round_trip() -> None:
    def at(time_ns: int, symbol: str, cpu: int = 0, pid: int = 1) -> stacks.Sample:
        return stacks.Sample(time_ns, cpu, pid, "program", (stacks.Frame(symbol, "[kernel.kallsyms]"),))

    samples = [at(50, "schedule")]  # before
    samples += [at(time, "udp_sendmsg") for time in (100, 110, 120)] + [at(130, "do_syscall_64")]
    samples += [at(300, "udp_sendmsg"), at(310, "schedule")]
    samples += [at(time, "udp_sendmsg", cpu=1, pid=2) for time in (100, 300)]  # a stranger's CPU
    runs = [
        profile.Run("row", "baseline", "udp", "round trip", 1000.0, 100, 200),
        profile.Run("row", "project", "project", "round trip", 3000.0, 300, 400),
    ]
    samples.sort(key=lambda sample: sample.time_ns)
    by_group, by_function = profile.shares(stacks.Profile(samples), {1}, runs)
    assert [(r["side"], r["cpu"], r["group"], r["ns"], r["share"]) for r in by_group] == [
        ("baseline", 0, "system_call", 250, 0.25), ("baseline", 0, "network", 750, 0.75),
        ("project", 0, "network", 1500, 0.5), ("project", 0, "scheduler", 1500, 0.5),
    ]  # fmt: skip
    assert {(r["side"], r["function"]): r["ns"] for r in by_function} == {
        ("baseline", "udp_sendmsg"): 750, ("project", "udp_sendmsg"): 1500, ("baseline", "schedule"): 0,
        ("project", "schedule"): 1500, ("baseline", "do_syscall_64"): 250, ("project", "do_syscall_64"): 0,
    }  # fmt: skip
    with pytest.raises(RunError, match="too few samples"):
        profile.shares(stacks.Profile(samples[:5]), {1}, runs)


def test_runs_that_do_not_tell_when_they_were_are_an_error(tmp_path: Path) -> None:
    record = {"row": "r", "role": "null", "baseline": "udp", "count": 4, "mean_ns": 10, "ended_ns": 100}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"row": "alone", "role": "project"}))
    assert profile.runs_of(tmp_path) == [profile.Run("r", "baseline", "udp", "round trip", 10, 60, 100)]
    del record["ended_ns"]
    (tmp_path / "samples.jsonl").write_text(json.dumps(record))
    with pytest.raises(RunError, match="ended_ns"):
        profile.runs_of(tmp_path)


def run_profile(
    *arguments: str, path: str | None = None, timeout: float = WATCHDOG_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / "profile"), *arguments], capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PATH": os.environ["PATH"] if path is None else path},
    )  # fmt: skip


def test_without_perf_it_says_what_to_install(tmp_path: Path) -> None:
    done = run_profile("selene-latency", "direct-yield-1cpu-64B", "--out", str(tmp_path), path=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "apt-get install linux-perf" in done.stderr


def test_where_perf_may_not_it_says_what_to_permit(tmp_path: Path) -> None:
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\necho 'No permission to enable cpu-clock event.' >&2\nexit 255\n")
    perf.chmod(0o755)
    done = run_profile("selene-latency", "direct-yield-1cpu-64B", "--out", str(tmp_path / "out"), path=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "No permission" in done.stderr
    assert "kernel.perf_event_paranoid" in done.stderr


@pytest.mark.needs_gcc
@pytest.mark.needs_perf
@pytest.mark.timeout(WATCHDOG_S)
def test_a_row_end_to_end(tmp_path: Path) -> None:
    row = "direct-yield-1cpu-64B"
    done = run_profile("selene-latency", row, "--runs", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    environment, *records = [json.loads(line) for line in done.stdout.splitlines()]
    assert environment["kind"] == "environment"
    assert {record["row"] for record in records} == {row}
    for side in profile.SIDES:
        mine = [record for record in records if record["side"] == side]
        (whole,) = (record for record in mine if record["kind"] == "profile")
        assert whole["operation"] == "round trip"
        assert whole["samples"] > 0
        of_group = {record["group"]: record["ns"] for record in mine if record["kind"] == "share"}
        assert sum(of_group.values()) == pytest.approx(whole["mean_ns"], rel=0.01)
        assert of_group["network"] > 0
        assert ("library" in of_group) == (side == "project")
        stacks_of = (tmp_path / f"{row}-{side}.folded").read_text().splitlines()
        assert sum(int(line.rpartition(" ")[2]) for line in stacks_of) == whole["samples"]
        # Frame pointers lead from a sample in the kernel to where the program began.
        assert any("__libc_start_call_main;" in line and ";udp_sendmsg_[k]" in line for line in stacks_of)
    assert any(";measure;selene_emit;" in line for line in stacks_of)
    assert (tmp_path / f"{row}.svg").read_text().startswith("<?xml")
    assert (tmp_path / f"{row}.png").stat().st_size > 0
    command = [sys.executable, "-m", "harness.profile_plot", str(tmp_path / "all.png"), str(tmp_path), str(tmp_path)]
    subprocess.run(command, cwd=BENCH, check=True)
    assert (tmp_path / "all.png").stat().st_size > 0


@pytest.mark.needs_perf
@pytest.mark.timeout(WATCHDOG_S)
def test_a_row_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = run_profile("lunar-local", "no-such-row", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no-such-row" in done.stderr
