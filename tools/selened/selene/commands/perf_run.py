# SPDX-License-Identifier: Apache-2.0
"""What the measurements share: the plan, both ends as two processes, pacing, and what a person sees meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

import selene
from libqos import cli, clock
from libqos.errors import QosError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Self

    from selene.stream import Delivery

IDLE_S: Final = 0.5  # how often an end that hears nothing looks round
_CHILD_PATIENCE_S: Final = 5.0
_SAY_AFTER_S: Final = 0.5
_PROGRESS_NS: Final = 200_000_000
_NEVER_NS: Final = 2**63


class PeerError(QosError):
    """The other end is not there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: the options of the command line."""

    socket_path: str
    output_format: str
    size_bytes: int
    count: int
    warmup: int
    rate: float | None
    relayed: bool
    wait: str
    delivery: Delivery
    stream: int
    channel: int
    timeout_s: float

    @property
    def total(self) -> int:
        """Messages to send."""
        return self.warmup + self.count

    @property
    def place(self) -> str:
        """Where the ends meet, for a person."""
        return f"stream {self.stream}, channel {self.channel}"


def open_session(plan: Plan, role: str) -> selene.Session:
    """A session as the plan wants it."""
    return selene.Session(plan.socket_path, relayed=plan.relayed, program=f"perf {role}")


def open_stream(plan: Plan, session: selene.Session, delivery: Delivery | None = None) -> selene.Stream:
    """A stream as the plan wants it."""
    return session.stream(
        plan.stream, delivery=delivery or plan.delivery, wait="spin" if plan.wait == "spin" else "sleep"
    )


# ---- Both ends here ----

_parent = 0  # in the process of the other end: who started it


def both_ends(plan: Plan, here: Callable[[], int], there: Callable[[], int], patience_s: float) -> int:
    """Run `there` in a process of its own, and `here`; the status of the one that failed. When `here` has ended,
    `there` has `patience_s` to end too, then it is interrupted."""
    open_session(plan, "check").close()  # what is wrong is said once
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run_child(there)
    status = ended = cli.FAILED
    try:
        status = here()
    finally:
        ended = _end_child(child, patience_s)
    return status or ended


def look_for_parent() -> None:
    """In the process that `both_ends` made: whoever started it may have been killed. Raises PeerError."""
    if _parent and os.getppid() != _parent:
        raise PeerError("the other end is gone")


def _run_child(there: Callable[[], int]) -> NoReturn:
    global _parent
    _parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os._exit(cli.run(cli.Command("selene perf", callback=there), []))


def _end_child(child: int, patience_s: float) -> int:
    for patience, number in ((patience_s, signal.SIGTERM), (_CHILD_PATIENCE_S, signal.SIGKILL)):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) if number == signal.SIGTERM else cli.OK
            time.sleep(0.01)
        os.kill(child, number)
    os.waitpid(child, 0)
    return cli.FAILED


# ---- While it runs ----


class Pace:
    """Sends at a rate: `wait` returns when message number `sent` is due."""

    def __init__(self, plan: Plan) -> None:
        self.period_ns = round(1e9 / plan.rate) if plan.rate is not None else 0
        self._spin_ns = clock.SPIN_DEFAULT_NS if plan.wait == "spin" else 0
        self._begin_ns = clock.monotonic_ns()

    def wait(self, sent: int) -> None:
        if self.period_ns:
            clock.sleep_until(self._begin_ns + sent * self.period_ns, clock.MONOTONIC, self._spin_ns)


class Progress:
    """How far it is, on stderr if that is a terminal. Call `show` when `time.monotonic_ns()` has reached `due_ns`."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._shown = False
        self.due_ns = time.monotonic_ns() + _PROGRESS_NS if sys.stderr.isatty() else _NEVER_NS

    def show(self, now_ns: int, done: int) -> None:
        self.due_ns = now_ns + _PROGRESS_NS
        self._shown = True
        click.echo(f"\r{self._name}: {done:,} of {self._total:,} messages", nl=False, err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


class Patience:
    """Waiting for the other end: says so after a moment, gives up after `--timeout`."""

    def __init__(self, plan: Plan, name: str, peer: str) -> None:
        self._plan, self._name, self._peer = plan, name, peer
        self._begin = time.monotonic()
        self._said = False

    def check(self) -> None:
        """Raises PeerError when the time is over."""
        look_for_parent()
        waited = time.monotonic() - self._begin
        start = f"selene perf {self._name} --{self._peer} --stream {self._plan.stream} --channel {self._plan.channel}"
        if waited > self._plan.timeout_s:
            raise PeerError(
                f"no {self._peer} on {self._plan.place} within {self._plan.timeout_s:g} s; start it on this host or on "
                f"a peer: {start}"
            )
        if waited > _SAY_AFTER_S and not self._said and not _parent:
            self._said = True
            say(f"{self._name}: waiting for the {self._peer} ({start})")


def say(text: str) -> None:
    """One line for a person."""
    click.echo(text, err=True)
