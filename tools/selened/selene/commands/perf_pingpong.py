# SPDX-License-Identifier: Apache-2.0
"""`selene perf pingpong`.

A ping carries the number of its client and its own; the server sends it back as it is, or, where the number says so,
with the stamps of `perf_breakdown` behind it. So several clients can use one server, and an answer that comes too late
is told from the one that is waited for.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from array import array
from typing import TYPE_CHECKING, Final

import selene
from libqos import cli, output, telemetry
from selene.commands import perf_breakdown, perf_run
from selene.commands.perf_breakdown import Trip

if TYPE_CHECKING:
    from selene.commands.perf_run import Plan

_HEADER: Final = struct.Struct("<QQ")  # client, number
STAMPED_BYTES: Final = _HEADER.size + perf_breakdown.STAMPS.size
_HELLO: Final = 2**63 - 1  # the number of pings that ask whether the server is there
_STAMPED: Final = 2**63  # in the number of a ping that wants stamps
_HELLO_S: Final = 0.05
_LOST_S: Final = 1.0  # an answer that takes longer is counted as lost
_CLOCK_SET_NS: Final = 1_000_000  # Unix time that moves by more against the monotonic clock was set
_WRITE_NS: Final = 250_000_000  # samples are written that often, between round trips


def run(plan: Plan, role: str | None, samples: bool, breakdown: bool) -> int:
    """One end, or both."""
    if role == "server":
        return serve(plan)
    client = Client(plan, samples, breakdown)
    if role == "client":
        return client.run()
    return perf_run.both_ends(plan, client.run, functools.partial(serve, plan), patience_s=0)


def serve(plan: Plan) -> int:
    """Answer until interrupted."""
    answered = refused = 0
    stamps: perf_breakdown.Server | None = None  # once somebody wants them
    with (
        perf_run.open_session(plan, "server") as session,
        perf_run.open_stream(plan, session) as stream,
        stream.source(channel=plan.channel + 1) as pong,
        stream.sink(channel=plan.channel) as ping,
    ):
        try:
            while True:
                try:
                    with ping.consume(perf_run.IDLE_S) as message:
                        who = _HEADER.unpack_from(message.data) if len(message) >= STAMPED_BYTES else (0, 0)
                        if who[1] & _STAMPED:
                            stamps = stamps or perf_breakdown.Server(ping, pong)
                            answer = bytearray(message.data)
                            stamps.fill(answer, _HEADER.size, who)
                            pong.send(answer)
                        else:
                            pong.send(message.data)
                        answered += 1
                except selene.SeleneTimeoutError:
                    perf_run.look_for_parent()
                except selene.SeleneAgainError:
                    refused += 1
        finally:
            if refused:
                cli.warn(f"{refused} of {answered + refused} pings were not answered: the client was behind")


class Client:
    """Measures round trips."""

    def __init__(self, plan: Plan, samples: bool, breakdown: bool) -> None:
        self._plan = plan
        self._samples = samples
        self._wants_breakdown = breakdown
        self._breakdown: perf_breakdown.Client | None = None
        self._number = int.from_bytes(os.urandom(8), "little")
        self._rtts = array("Q")
        self._lost = 0
        self._unwritten: list[Trip] = []
        self._unix_ns = 0  # Unix time of the monotonic clock's 0
        self._before = (-2, 0)  # number and arrival of the sample written last
        self._arrived_ns = 0
        self._writer: output.Writer | None = None

    def run(self) -> int:
        """Measure, and print what was measured, also when interrupted."""
        plan = self._plan
        self._writer = output.writer(plan.output_format)
        with (
            perf_run.open_session(plan, "client") as session,
            perf_run.open_stream(plan, session) as stream,
            stream.sink(channel=plan.channel + 1) as pong,
            stream.source(channel=plan.channel) as ping,
        ):
            self._find_server(ping, pong)
            if self._wants_breakdown:
                self._breakdown = perf_breakdown.Client(ping, pong)
            try:
                with perf_run.Progress("pingpong", plan.total) as progress:
                    self._measure(ping, pong, progress)
            finally:
                self._write()
                if self._rtts:
                    self._writer.write(telemetry.summary("rtt", self._rtts, lost=self._lost))
                if self._breakdown is not None and (record := self._breakdown.record(plan.size_bytes)) is not None:
                    table = plan.output_format == "table"
                    for row in perf_breakdown.rows(record) if table else [record]:
                        self._writer.write(row)
        if not self._rtts:
            raise perf_run.PeerError(f"none of {plan.count} pings was answered within {_LOST_S:g} s")
        return cli.OK

    def _find_server(self, ping: selene.Source, pong: selene.Sink) -> None:
        patience = perf_run.Patience(self._plan, "pingpong", "server")
        while self._trip(ping, pong, _HELLO, _HELLO_S) is None:
            patience.check()

    def _measure(self, ping: selene.Source, pong: selene.Sink, progress: perf_run.Progress) -> None:
        plan, pace = self._plan, perf_run.Pace(self._plan)
        write_ns = time.monotonic_ns() + _WRITE_NS
        # The stamps of the last one come with one more.
        for number in range(plan.total + (self._breakdown is not None)):
            pace.wait(number)
            trip = self._trip(ping, pong, number, _LOST_S)
            if trip is None:
                self._lost += plan.warmup <= number < plan.total
            elif self._breakdown is None:
                self._account(trip)
            if self._arrived_ns >= write_ns:
                self._write()
                write_ns = time.monotonic_ns() + _WRITE_NS
            if self._arrived_ns >= progress.due_ns:
                progress.show(self._arrived_ns, number + 1)

    def _account(self, trip: Trip | None) -> None:
        if trip is None or trip.number < self._plan.warmup:
            return
        self._rtts.append(trip.rtt_ns)
        if self._samples:
            self._unwritten.append(trip._replace(number=trip.number - self._plan.warmup))
        if self._breakdown is not None:
            self._breakdown.count(trip)

    def _trip(self, ping: selene.Source, pong: selene.Sink, number: int, timeout_s: float) -> Trip | None:
        """One round trip; None when no answer came. Where stamps are wanted, the one before is accounted for."""
        stamps = self._breakdown
        name = (self._number, number | (_STAMPED if self._wants_breakdown else 0))
        buffer = ping.get(self._plan.size_bytes)
        if self._wants_breakdown:
            buffer.data[:STAMPED_BYTES] = bytes(STAMPED_BYTES)
        _HEADER.pack_into(buffer.data, 0, *name)
        begin_unix_ns = time.time_ns()
        begin_ns = time.monotonic_ns()
        buffer.emit()
        left_s = timeout_s
        while left_s > 0:
            try:
                message = pong.consume(left_s)
            except selene.SeleneTimeoutError:
                break
            self._arrived_ns = time.monotonic_ns()
            end_unix_ns = time.time_ns()
            with message:
                if len(message) >= _HEADER.size and _HEADER.unpack_from(message.data) == name:
                    trip = Trip(number, self._arrived_ns - begin_ns, self._arrived_ns, {})
                    if stamps is not None:
                        told = perf_breakdown.STAMPS.unpack_from(message.data, _HEADER.size)
                        self._account(stamps.take(trip, begin_unix_ns, end_unix_ns, told))
                    return trip
            left_s = timeout_s - (self._arrived_ns - begin_ns) / 1e9
        if stamps is not None:
            self._account(stamps.lose())
        return None

    def _write(self) -> None:
        """Write the samples that were not written yet."""
        assert self._writer is not None
        period_ns = round(1e9 / self._plan.rate) if self._plan.rate is not None else 0
        # two readings are never of one instant: the difference stays as it is until the clock was set
        unix_ns = time.time_ns() - time.monotonic_ns()
        if abs(unix_ns - self._unix_ns) > _CLOCK_SET_NS:
            self._unix_ns = unix_ns
        for number, rtt_ns, arrived_ns, shares_ns in self._unwritten:
            jitter_ns = None
            if period_ns and self._before[0] == number - 1:
                jitter_ns = arrived_ns - self._before[1] - period_ns
            self._before = (number, arrived_ns)
            shares = {f"{name}_ns": value for name, value in shares_ns.items()}
            self._writer.write(
                telemetry.latency_record(number, rtt_ns, self._unix_ns + arrived_ns, jitter_ns, **shares)
            )
        self._unwritten.clear()
