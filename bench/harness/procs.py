# SPDX-License-Identifier: Apache-2.0
"""Processes under measurement: where they run, what they print, what they cost, and that none is left behind.

A child gets a session of its own (Ctrl-C reaches the harness only, which then stops its children by pid) and a
parent-death signal (so that kill -9 of the harness leaves none either). Only the main thread may start one: the
parent-death signal follows the thread that forked.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

Record = dict[str, Any]

RUN_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 5.0
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class RunError(Exception):
    """A run that gave no figure: the message says which command failed and what it printed."""


def usable_cpus() -> list[int]:
    """Return the CPUs this process may use, in order."""
    return sorted(os.sched_getaffinity(0))


def cpu_time_ns(pid: int) -> int:
    """Return user and system time of all threads of process ``pid``, dead ones included, in ns.

    A thread that is running right now is counted up to its last scheduler tick, so the figure of a process that spins
    may lag by some milliseconds; that of one that sleeps is exact. Raises RunError when the process is gone.
    """
    # The CPU clock of a process: pid inverted, clock type 2 (CPUCLOCK_SCHED), as clock_getcpuclockid(3) makes it.
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError as error:
        raise RunError(f"CPU time of process {pid}: {error.strerror}") from error


def descendants(pid: int) -> list[int]:
    """Return the living descendants of ``pid``, parents before their children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # The command name in parentheses may hold anything, so read on behind the last one.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return found


def _started(pid: int) -> str | None:
    """Return when process ``pid`` started, in clock ticks: with the pid it names one process for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def place(pid: int, cpus: Collection[int]) -> None:
    """Move every thread of process ``pid`` to ``cpus``; threads that end meanwhile are passed over."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cpus)


class Process:
    """A child that prints JSON Lines; use as a context manager, which stops it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cpus: Collection[int] | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: IO[Any] | int = subprocess.DEVNULL,
    ) -> None:
        """Start ``command`` on ``cpus`` (None: anywhere) with ``environment`` added to this process's.

        Raises RunError if it cannot be started.
        """
        self.command = list(command)
        self._pending = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        parent = os.getpid()

        def before_exec() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
            if cpus is not None:
                os.sched_setaffinity(0, cpus)

        try:
            self._popen = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=before_exec,
            )
        except OSError as error:
            self._errors.close()
            raise RunError(f"{self.command[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """The process id; `ip netns exec` keeps it, since it replaces itself by the program."""
        return self._popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def running(self) -> bool:
        """Tell whether the process has not ended."""
        return self._popen.poll() is None

    def failure(self, what: str) -> RunError:
        """Return an error that says ``what`` happened, to which command, and the end of its stderr."""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-800:]
        return RunError(f"{' '.join(self.command)}: {what}" + (f": {said}" if said else ""))

    def chunks(self, deadline: float) -> Iterator[bytes]:
        """Yield what the process writes to stdout, as it comes, until it closes it.

        Raises RunError once ``deadline`` (time.monotonic()) has passed.
        """
        assert self._popen.stdout is not None
        descriptor = self._popen.stdout.fileno()
        while True:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self.failure("timed out")
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                return
            yield chunk

    def records(self, timeout_s: float = RUN_TIMEOUT_S) -> Iterator[Record]:
        """Yield the JSON objects the process prints, a line each, until it closes its stdout.

        Other lines are passed over. Raises RunError if the end has not come within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            while b"\n" in self._pending:
                line, _, self._pending = self._pending.partition(b"\n")
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record
            chunk = next(self.chunks(deadline), None)
            if chunk is None:
                return
            self._pending += chunk

    def wait_ready(self, timeout_s: float = 10.0) -> None:
        """Wait for the record of kind ``ready``; raises RunError if it does not come."""
        for record in self.records(timeout_s):
            if record.get("kind") == "ready":
                return
        raise self.failure("ended before it was ready")

    def result(self, timeout_s: float = RUN_TIMEOUT_S) -> Record:
        """Wait for the end and return the last record; raises RunError on failure, time-out or no record."""
        last: Record | None = None
        for record in self.records(timeout_s):
            last = record
        status = self.wait()
        if status != 0:
            raise self.failure(f"ended with status {status}")
        if last is None:
            raise self.failure("printed no JSON record")
        return last

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the end and return the exit status; raises RunError on time-out."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failure("did not end") from None

    def stop(self) -> None:
        """End the process and what it started, politely first; harmless if it has ended."""
        left = {pid: _started(pid) for pid in descendants(self.pid)} if self.running() else {}
        if self.running():
            self._popen.terminate()
            try:
                self._popen.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        for pid, started in left.items():
            # The id may have been given to a stranger meanwhile; with the start time it cannot be mistaken.
            if started is not None and _started(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        self._errors.close()


def run(
    command: Sequence[str], *, cpus: Collection[int] | None = None, environment: Mapping[str, str] | None = None
) -> Record:
    """Run ``command`` to its end and return its last JSON record; raises RunError."""
    with Process(command, cpus=cpus, environment=environment) as process:
        return process.result()


@contextlib.contextmanager
def burners(program: Path, cpus: Collection[int]) -> Iterator[None]:
    """Keep each of ``cpus`` awake with a SCHED_IDLE loop (``program``: the built raw/burner.c)."""
    with contextlib.ExitStack() as stack:
        for cpu in cpus:
            stack.enter_context(Process([str(program), "--cpu", str(cpu)])).wait_ready()
        yield


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that what was started is stopped."""

    def unwind(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
