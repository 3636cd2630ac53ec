# SPDX-License-Identifier: Apache-2.0
"""A bench program from its command line to its files: options, progress, results, the folder of ``--out``.

argparse, not click: a bench measures its raw baselines also where nothing was set up, on a bare Python.
"""

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import pairs, plot
from harness.build import raw
from harness.env import environment
from harness.pairs import Absolute, Comparison, Metric, Round, absolute, compared, run_rounds
from harness.procs import Record, RunError, burners, terminated_as_interrupt
from harness.stats import PAIRS_MIN, RUNS_MIN

QUICK_BUDGET_S = 36.0


def positive(text: str) -> int:
    """Parse an option that is a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def sizes(text: str) -> list[int]:
    """Parse a comma-separated list of sizes in bytes, each at least 8 (a sequence number)."""
    values = [int(part) for part in text.split(",")]
    if not values or min(values) < 8:
        raise argparse.ArgumentTypeError("sizes of at least 8 bytes, separated by commas")
    return values


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every bench has."""
    made = argparse.ArgumentParser(prog=name, description=description)
    made.add_argument("--quick", action="store_true", help="under 45 seconds; leaves rows out and says which")
    made.add_argument("--out", type=Path, metavar="DIR", help="write raw samples, environment, results and plot there")
    made.add_argument(
        "--runs", type=positive, default=PAIRS_MIN, metavar="N",
        help=f"pairs per row (default {PAIRS_MIN}; with fewer the verdict is null)",
    )  # fmt: skip
    made.add_argument("--baseline-cmd", type=shlex.split, metavar="CMD", help="run CMD in place of the raw baseline")
    made.add_argument("--project-cmd", type=shlex.split, metavar="CMD",
                      help="run CMD, called as the baseline is, in place of the project")  # fmt: skip
    made.add_argument("--only", metavar="TEXT", default="", help="only the rows whose name contains TEXT")
    made.add_argument("--seed", type=int, default=None, help="seed of the random order (default: the clock's)")
    return made


class Bench:
    """Runs rows, prints what they give, and writes the folder; a row that fails does not stop the others."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.name = name
        self.quick: bool = options.quick
        self.runs: int = options.runs
        self.only: str = options.only
        self.out: Path | None = options.out
        self.results: list[Record] = []
        self.samples: list[Record] = []
        self.failed = False
        seed = time.time_ns() if options.seed is None else options.seed
        self.rng = random.Random(seed)
        self.tries = 1 if self.quick else pairs.TRIES
        self.environment = {**environment(), "bench": name, "arguments": sys.argv[1:], "seed": seed}
        self._started = time.monotonic()
        self._slowest_row_s = 0.0

    def print(self, record: Record) -> None:
        """Print one record on stdout."""
        print(json.dumps(record, separators=(",", ":")), flush=True)

    def note(self, **facts: Any) -> None:
        """Add ``facts`` to the environment record (how the hosts are joined, what the daemon says it is)."""
        self.environment.update(facts)

    def skip(self, row: str, reason: str) -> None:
        """Say that ``row`` is left out, and why."""
        if self.only in row:
            self.print({"kind": "skipped", "bench": self.name, "row": row, "reason": reason})
            print(f"{row}: left out: {reason}", file=sys.stderr)

    def undecided(self, comparison: Comparison, reason: str) -> None:
        """Report a row that cannot be measured on this system, which is no failure; ``reason`` says what to install."""
        if self.only in comparison.name:
            print(f"{comparison.name}: undecided: {reason}", file=sys.stderr)
            self._without_value(comparison.metrics, {"baseline": comparison.baseline, **comparison.labels}, reason)

    def _without_value(self, metrics: Sequence[Metric], labels: Record, error: str) -> None:
        for metric in metrics:
            self.results.append({"kind": "result", "bench": self.name, "metric": metric.name, "value": None,
                                 "spread": None, "unit": metric.unit, "target": metric.target, **labels, "ok": None,
                                 "error": error})  # fmt: skip

    def compare(self, comparison: Comparison) -> None:
        """Run a row with a baseline."""

        def measure() -> None:
            with burners(raw("burner"), comparison.burn):
                rounds = run_rounds(comparison, self.runs, self.rng, seen, self.tries)
            for metric in comparison.metrics:
                self.results.append(compared(self.name, comparison, metric, rounds))

        def seen(number: int, made: Round) -> None:
            for role, record in made.records.items():
                self.samples.append({**record, "bench": self.name, "row": comparison.name, "pair": number,
                                     "role": role, "baseline": comparison.baseline})  # fmt: skip
            pair = {
                metric.name: metric.compare(made.records["project"], made.records["baseline"])
                for metric in comparison.metrics
            }
            self.print({"kind": "pair", "bench": self.name, "row": comparison.name, "pair": number,
                        "order": list(made.order), "stolen": round(made.stolen, 4), **pair})  # fmt: skip
            self._progress(comparison.name, number + 1, self.runs)

        self._row(comparison.name, comparison.metrics, {"baseline": comparison.baseline, **comparison.labels}, measure)

    def measure(self, row: Absolute) -> None:
        """Run a row without a baseline, three times."""

        def measure() -> None:
            records: list[Record] = []
            disturbed = 0
            for number in range(RUNS_MIN):
                record, stolen, _ = pairs.undisturbed(row.run, self.tries)
                records.append(record)
                disturbed += stolen > pairs.STOLEN_MAX
                sample = {**records[-1], "bench": self.name, "row": row.name, "pair": number, "role": "project"}
                self.samples.append(sample)
                figures = {metric.name: metric.alone(records[-1]) for metric in row.metrics}
                self.print({"kind": "run", "bench": self.name, "row": row.name, "run": number, **figures})
                self._progress(row.name, number + 1, RUNS_MIN)
            for metric in row.metrics:
                self.results.append(absolute(self.name, row, metric, records, disturbed))

        self._row(row.name, row.metrics, {"baseline": None, **row.labels}, measure)

    def _row(self, name: str, metrics: Sequence[Metric], labels: Record, measure: Callable[[], None]) -> None:
        if self.only not in name:
            return
        start = time.monotonic()
        if self.quick and start - self._started + self._slowest_row_s > QUICK_BUDGET_S:
            self.skip(name, "--quick is out of time")
            return
        try:
            measure()
        except RunError as error:
            self.failed = True
            print(f"\n{name}: {error}", file=sys.stderr)
            self._without_value(metrics, labels, str(error))
        self._slowest_row_s = max(self._slowest_row_s, time.monotonic() - start)

    def _progress(self, row: str, done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{row}: {done}/{of}", end="\n" if done == of else "", file=sys.stderr, flush=True)
        elif done == of:
            print(f"{row}: {of} done", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Write the folder, print the result lines, and return the exit status: 1 if a row could not be measured."""
        self.note(elapsed_s=round(time.monotonic() - self._started, 1))
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "environment.json").write_text(json.dumps(self.environment, indent=1) + "\n")
            for file, records in (("samples.jsonl", self.samples), ("results.jsonl", self.results)):
                (self.out / file).write_text("".join(json.dumps(record) + "\n" for record in records))
            plot.draw_or_say_why_not(self.out)
        for result in self.results:
            self.print({key: value for key, value in result.items() if key != "values"})
        return 1 if self.failed else 0


def run_bench(name: str, options: argparse.Namespace, rows: Callable[[Bench], None]) -> int:
    """Run ``rows`` as bench ``name`` and return its exit status; interrupted or ended (SIGTERM), what is there is still
    written."""
    with terminated_as_interrupt():
        bench = Bench(options, name)
        bench.print(bench.environment)
        try:
            rows(bench)
        except KeyboardInterrupt:
            bench.finish()
            return 130
        except SystemExit:
            bench.finish()
            raise
        except RunError as error:
            print(f"{name}: {error}", file=sys.stderr)
            bench.failed = True
        return bench.finish()
