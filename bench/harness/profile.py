# SPDX-License-Identifier: Apache-2.0
"""Where the time of a bench's row goes: the bench under `perf record`, its samples by side, CPU, group and function.

perf samples the two CPUs of the bench, whatever runs there, idle time included, so that what is counted on a CPU adds
up to the time of a round trip or message. Only the measured part of each run counts, which its record tells. What is
sampled is built with frame pointers, into ``build-profile``: perf's other way, by DWARF tables, loses half the stacks.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.build import ROOT
from harness.procs import Process, Record, RunError, descendants
from harness.stacks import AWAY, GROUPS, Profile, Sample, classify, folded, parse

FOLDER = ROOT / "build-profile"
FRAME_POINTERS = "-fno-omit-frame-pointer -mno-omit-leaf-frame-pointer"
FREQUENCY = 3989  # a prime, so that no tick of the system keeps step with it
TIMEOUT_S = 900.0
EVENT = "cpu-clock"  # the only one there is without performance counters
FUNCTION_SHARE_MIN = 0.002  # of the time that was worked, on the side where it is larger
WORKING_SHARE_MIN = 0.01
SIDES = ("baseline", "project")
PROJECT = {"lunar-mom": "Lunar"}  # who the project is, where not SELENE
PERMIT = "as root, or after: sysctl kernel.perf_event_paranoid=-1 kernel.kptr_restrict=0"


class ProfileError(Exception):
    """Nothing can be profiled here, or what was asked for does not exist; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """The measured part of one run, in ns of CLOCK_MONOTONIC, and how long one round trip or message took."""

    row: str
    side: str
    program: str
    operation: str
    ns: float
    began_ns: float
    ended_ns: float


def record_command(cpus: Collection[int], frequency: int, file: Path, command: Sequence[str]) -> list[str]:
    """Return ``command`` under `perf record`; raises ProfileError if there is no perf."""
    perf = shutil.which("perf")
    if perf is None:
        raise ProfileError("perf is not installed (Debian: apt-get install linux-perf)")
    where = ["-C", ",".join(map(str, cpus)), "-m", "4M", "-o", str(file)]
    how = ["-e", EVENT, "-F", str(frequency), "-k", "CLOCK_MONOTONIC", "--call-graph", "fp"]
    return [perf, "record", "--quiet", "--no-buildid", *how, *where, "--", *command]


def check(cpus: Collection[int], frequency: int) -> None:
    """Raise ProfileError, with the remedy, if perf cannot sample ``cpus`` or may not name kernel functions."""
    with tempfile.TemporaryDirectory(prefix="qosb-") as folder:
        command = record_command(cpus, frequency, Path(folder) / "perf.data", ["true"])
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())[:400]
        raise ProfileError(f"perf may not or cannot sample CPUs {', '.join(map(str, cpus))}: {said}; run it {PERMIT}")
    with open("/proc/kallsyms") as symbols:
        if int(symbols.readline().split()[0], 16) == 0:
            raise ProfileError(f"the kernel hides where its functions are (/proc/kallsyms); run it {PERMIT}")


def built_with_frame_pointers() -> dict[str, str]:
    """Build libraries and selened-dp so, and return the variables that make benches use them; raises ProfileError."""
    meson = ROOT / ".venv" / "bin" / "meson"
    if not meson.exists():
        raise ProfileError(f"{meson} is not there: run `make setup` first")
    root = FOLDER / "root"
    environment = {**os.environ, "PATH": f"{meson.parent}:{os.environ.get('PATH', '')}"}
    commands = [[str(meson), "install", "--quiet", "-C", str(FOLDER)]]
    if not (FOLDER / "build.ninja").exists():
        commands.insert(0, [str(meson), "setup", str(FOLDER), str(ROOT), f"--prefix={root}", "--libdir=lib",
                            "-Dtests=false", f"-Dc_args={FRAME_POINTERS}"])  # fmt: skip
    for command in commands:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise RunError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-800:]}")
    return {
        "QOS_SELENE_LIB": str(root / "lib"),
        "QOS_SELENED_DP": str(root / "bin" / "selened-dp"),
        "CC": f"{os.environ.get('CC', 'cc')} {FRAME_POINTERS}",
    }


def sampled(command: Sequence[str], cpus: Collection[int], frequency: int) -> tuple[Profile, set[int]]:
    """Run ``command``, a bench, on ``cpus`` under perf; return the samples and the processes that the bench started.

    Raises RunError if the bench fails or perf does.
    """
    environment = built_with_frame_pointers()
    with tempfile.TemporaryDirectory(prefix="qosb-") as folder:
        file = Path(folder) / "perf.data"
        recording = record_command(cpus, frequency, file, command)
        with Process(recording, cpus=cpus, environment=environment) as process:
            records = process.records(TIMEOUT_S)
            if next(records, None) is None:
                raise process.failure("printed no JSON record")
            bench = descendants(process.pid)[0]
            for _ in records:
                pass
            if (status := process.wait(60)) != 0:
                raise process.failure(f"ended with status {status}")
        script = [recording[0], "script", "-i", str(file), "--no-inline", "--ns", "--show-task-events",
                  "--show-lost-events", "-F", "comm,pid,tid,cpu,time,ip,sym,dso"]  # fmt: skip
        with subprocess.Popen(
            script,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as reading:
            assert reading.stdout is not None
            profile = parse(reading.stdout)
    if not profile.samples:
        raise RunError(f"{' '.join(script)}: no samples")
    return profile, profile.family(bench)


def runs_of(folder: Path) -> list[Run]:
    """Read from the bench's own samples what ran when; raises RunError if they do not tell."""
    runs = []
    for line in (folder / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "baseline" not in record:
            continue  # a row without a baseline
        try:
            ns = record["mean_ns"] if "mean_ns" in record else 1e9 / record["rate_per_s"]
            ended = float(record["ended_ns"])
            began = ended - record["count"] * ns
        except (KeyError, ZeroDivisionError) as error:
            raise RunError(f"{record['row']}: a record does not tell when it was measured: {error!r}") from error
        side, program = "baseline", record["baseline"]
        if record["role"] == "project":
            side, program = "project", PROJECT.get(record["bench"], "SELENE")
        operation = "round trip" if "mean_ns" in record else "message"
        runs.append(Run(record["row"], side, program, operation, ns, began, ended))
    return runs


def _counted(profile: Profile, family: set[int], run: Run, cpu: int) -> Counter[tuple[str, str]]:
    return Counter(
        classify(sample, family) for sample in profile.between(run.began_ns, run.ended_ns) if sample.cpu == cpu
    )


def _working(counts: Counter[tuple[str, str]]) -> bool:
    """Whether a CPU with these samples took part in a run."""
    away = sum(count for (group, _), count in counts.items() if group in AWAY)
    return counts.total() - away > WORKING_SHARE_MIN * counts.total()


def shares(profile: Profile, family: set[int], runs: Sequence[Run]) -> tuple[list[Record], list[Record]]:
    """Return records of one row: of kind ``share`` by side, CPU and group, and of kind ``function``, largest first.

    ``ns`` is per round trip or message. On each CPU that took part, ``share`` adds up to its mean time; a ``function``
    counts on all of them. Raises RunError if there were too few samples.
    """
    counts = {(run, cpu): _counted(profile, family, run, cpu)
              for run in runs for cpu in sorted({sample.cpu for sample in profile.samples})}  # fmt: skip
    cpus = sorted({cpu for (_, cpu), of in counts.items() if _working(of)})
    groups: dict[tuple[str, int, str], float] = defaultdict(float)
    functions: dict[tuple[str, str, str], float] = defaultdict(float)
    for run in runs:
        if not cpus or not all(counts[run, cpu] for cpu in cpus):
            raise RunError(f"{run.row}: too few samples in a run of {(run.ended_ns - run.began_ns) / 1e6:.1f} ms")
        of_side = sum(other.side == run.side for other in runs)
        for cpu in cpus:
            of = counts[run, cpu]
            for (group, function), count in of.items():
                ns = count / of.total() * run.ns / of_side
                groups[run.side, cpu, group] += ns
                functions[run.side, group, function] += ns
    totals = {side: sum(ns for (of, _, _), ns in groups.items() if of == side) / len(cpus) for side in SIDES}
    by_group = [
        {"kind": "share", "side": side, "cpu": cpu, "group": group, "ns": round(groups[side, cpu, group], 1),
         "share": round(groups[side, cpu, group] / totals[side], 4)}
        for side in SIDES for cpu in cpus for group in GROUPS if (side, cpu, group) in groups
    ]  # fmt: skip
    largest: dict[tuple[str, str], float] = defaultdict(float)
    for (_, *key), ns in functions.items():
        largest[key[0], key[1]] = max(ns, largest[key[0], key[1]])
    worked = max(
        sum(ns for (of, group, _), ns in functions.items() if of == side and group not in AWAY) for side in SIDES
    )
    by_function = [
        {"kind": "function", "side": side, "group": group, "function": function,
         "ns": round(functions.get((side, group, function), 0.0), 1)}
        for (group, function), ns in sorted(largest.items(), key=lambda item: -item[1])
        if ns >= FUNCTION_SHARE_MIN * worked
        for side in SIDES
    ]  # fmt: skip
    return by_group, by_function


def measured(profile: Profile, family: set[int], runs: Sequence[Run], side: str) -> list[Sample]:
    """Return the samples of a side's processes, and of nobody else, in the measured parts of its runs."""
    return [
        sample for run in runs if run.side == side
        for sample in profile.between(run.began_ns, run.ended_ns) if sample.pid in family
    ]  # fmt: skip


def report(folder: Path, profile: Profile, family: set[int]) -> list[Record]:
    """Return all records of the bench whose ``--out`` is ``folder``/bench, and write each row's folded stacks.

    Raises RunError as :func:`runs_of` and :func:`shares` do.
    """
    runs = runs_of(folder / "bench")
    records: list[Record] = []
    for row in dict.fromkeys(run.row for run in runs):
        of_row = [run for run in runs if run.row == row]
        for made in shares(profile, family, of_row):
            records += [{**record, "row": row} for record in made]
        for side in SIDES:
            mine = [run for run in of_row if run.side == side]
            samples = measured(profile, family, of_row, side)
            (folder / f"{row}-{side}.folded").write_text(folded(samples))
            mean = sum(run.ns for run in mine) / len(mine)
            records.append({"kind": "profile", "side": side, "row": row, "program": mine[0].program,
                            "operation": mine[0].operation, "mean_ns": round(mean, 1), "runs": len(mine),
                            "samples": len(samples), "samples_lost": profile.lost})  # fmt: skip
    return records
