# SPDX-License-Identifier: Apache-2.0
"""What tsn-talker and tsn-listener share: a loop in C in a thread of its own, its events, and the end of a run."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from libqos import cli, rt
from libqos.errors import QosError
from tsn_agent._traffic import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tsn_agent.traffic_agent import AgentLink
    from tsn_agent.traffic_settings import ListenerSettings, TalkerSettings

STAMPS: Final = {lib.QOS_STAMP_USER: "user", lib.QOS_STAMP_SOFTWARE: "software", lib.QOS_STAMP_HARDWARE: "hardware"}
NO_JITTER: Final = -(1 << 63)
_TICK_S: Final = 0.05  # records of packets wait no longer than that
_BATCH: Final = 4096


class TrafficError(QosError):
    """Traffic that cannot be sent or received. The text says what to do."""


class Output(Protocol):
    """Where records go."""

    def write(self, record: Mapping[str, object]) -> None: ...
    def flush(self) -> None: ...


class Table:
    """Records for a person, at once."""

    def __init__(self) -> None:
        from libqos.table import TableWriter

        self.write = TableWriter().write

    def flush(self) -> None:
        """Nothing waits."""


def output(output_format: str) -> Output:
    """Where the records of `--format` go: JSON Lines are written when the loop has been looked at, some at a time."""
    from libqos.telemetry import Writer

    return Table() if output_format == "table" else Writer(batch=True)


def tai_offset_ns() -> int:
    """TAI minus Unix time, as the kernel has it."""
    return int(lib.qos_stamps_offset())


def complain(events: Events, agent: AgentLink | None) -> None:
    """Say at the end what did not find its way out."""
    if events.overflow:
        cli.warn(f"{events.overflow} records were left out: stdout was too slow for them; the counters are complete")
    if agent is not None and agent.unreported:
        cli.warn(f"{agent.unreported} reports did not get to the agent")


class Events:
    """The ring that a loop in C writes; `take` gives what is in it. Freed by `close`, after the loop has ended."""

    def __init__(self) -> None:
        self.pointer = lib.qos_events_new()
        if self.pointer == ffi.NULL:
            raise TrafficError(f"no room for events: {os.strerror(ffi.errno)}")
        self.fd: int = lib.qos_events_fd(self.pointer)
        self._batch = ffi.new("struct qos_event[]", _BATCH)

    @property
    def overflow(self) -> int:
        """Events that found no room."""
        return int(lib.qos_events_overflow(self.pointer))

    def take(self) -> Iterator[Any]:
        """The events so far, as `struct qos_event`, no more than the ring holds; each is valid until the next one is
        asked for."""
        for _ in range(lib.QOS_EVENTS_CAPACITY // _BATCH):
            count = lib.qos_events_take(self.pointer, self._batch, _BATCH)
            for index in range(count):
                yield self._batch[index]
            if count < _BATCH:
                return

    def close(self) -> None:
        lib.qos_events_free(self.pointer)


class Loop:
    """Runs `body`, which is C, in a thread with the scheduling that was asked for, until it ends or is stopped.

    SIGTERM and SIGINT stop it; `interrupted` says that the latter did."""

    def __init__(
        self, settings: TalkerSettings | ListenerSettings, body: Callable[[], int], stop: Callable[[], None]
    ) -> None:
        self.result = 0
        self.interrupted = False
        self._settings = settings
        self._body = body
        self.stop = stop  # from any thread; it ends within 20 ms
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def follow(self, events: Events, wake: int | None, handle: Callable[[], None], report: Callable[[], None]) -> None:
        """Start it, call `handle` whenever there may be events, or the descriptor `wake` is readable, and `report`
        every interval; return when it has ended and all is handled."""
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._thread.start()
            poll = select.poll()
            for descriptor in (events.fd, wake):
                if descriptor is not None:
                    poll.register(descriptor, select.POLLIN)
            due = time.monotonic() + self._settings.interval / 1e9
            while self._thread.is_alive():
                poll.poll(_TICK_S * 1000)
                handle()
                self._warn()
                if time.monotonic() >= due:
                    due += self._settings.interval / 1e9
                    report()
            handle()
            self._warn()
        finally:
            self.stop()
            self._thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _: object) -> None:
        self.interrupted = number == signal.SIGINT
        self.stop()

    def _warn(self) -> None:
        while self._refused:
            cli.warn(self._refused.pop(0))

    def _run(self) -> None:
        self._schedule()
        self.result = self._body()

    def _schedule(self) -> None:
        """What the thread asks of the kernel; a refusal is no reason not to go on."""
        wanted = self._settings
        requests: list[tuple[str, Callable[[], None]]] = []
        if wanted.lock_memory:
            requests.append(("locked memory", rt.lock_memory))
        if wanted.cpu >= 0:
            requests.append((f"CPU {wanted.cpu}", lambda: rt.set_affinity([wanted.cpu])))
        if wanted.scheduling != "other":
            scheduler = rt.SchedulingClass[wanted.scheduling.upper()]
            asked = f"{wanted.scheduling} {wanted.rt_priority}"
            requests.append((asked, lambda: rt.set_scheduler(scheduler, wanted.rt_priority)))
        for what, request in (*requests, ("exact timers", lambda: rt.set_timer_slack(1))):
            try:
                request()
            except rt.RtError as error:
                self._refused.append(f"goes on without {what}: {error.strerror}")
