# SPDX-License-Identifier: Apache-2.0
"""`selene perf pingpong`.

A ping carries the number of its client and its own; the server sends it back as it is. So several clients can use one
server, and an answer that comes too late is told from the one that is waited for.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from array import array
from typing import TYPE_CHECKING, Final

import selene
from libqos import cli, telemetry
from selene.commands import common, perf_run

if TYPE_CHECKING:
    from selene.commands.perf_run import Plan

_HEADER: Final = struct.Struct("<QQ")  # client, number
_HELLO: Final = 2**64 - 1  # the number of pings that ask whether the server is there
_HELLO_S: Final = 0.05
_LOST_S: Final = 1.0  # an answer that takes longer is counted as lost
_WRITE_NS: Final = 250_000_000  # samples are written that often, between round trips


def run(plan: Plan, role: str | None, samples: bool) -> int:
    """One end, or both."""
    if role == "server":
        return serve(plan)
    if role == "client":
        return Client(plan, samples).run()
    return perf_run.both_ends(plan, Client(plan, samples).run, functools.partial(serve, plan), patience_s=0)


def serve(plan: Plan) -> int:
    """Answer until interrupted."""
    answered = refused = 0
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

    def __init__(self, plan: Plan, samples: bool) -> None:
        self._plan = plan
        self._samples = samples
        self._number = int.from_bytes(os.urandom(8), "little")
        self._rtts = array("Q")
        self._lost = 0
        self._unwritten: list[tuple[int, int, int]] = []  # number, round trip, arrival (monotonic)
        self._before = (-2, 0)  # number and arrival of the sample written last
        self._arrived_ns = 0
        self._writer: common.Writer | None = None

    def run(self) -> int:
        """Measure, and print what was measured, also when interrupted."""
        plan = self._plan
        self._writer = common.writer(plan.output_format)
        with (
            perf_run.open_session(plan, "client") as session,
            perf_run.open_stream(plan, session) as stream,
            stream.sink(channel=plan.channel + 1) as pong,
            stream.source(channel=plan.channel) as ping,
        ):
            self._find_server(ping, pong)
            try:
                with perf_run.Progress("pingpong", plan.total) as progress:
                    self._measure(ping, pong, progress)
            finally:
                self._write()
                if self._rtts:
                    self._writer.write(telemetry.summary("rtt", self._rtts, lost=self._lost))
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
        for number in range(plan.total):
            pace.wait(number)
            rtt_ns = self._trip(ping, pong, number, _LOST_S)
            if number >= plan.warmup:
                if rtt_ns is None:
                    self._lost += 1
                    continue
                self._rtts.append(rtt_ns)
                if self._samples:
                    self._unwritten.append((number - plan.warmup, rtt_ns, self._arrived_ns))
                    if self._arrived_ns >= write_ns:
                        self._write()
                        write_ns = time.monotonic_ns() + _WRITE_NS
            if self._arrived_ns >= progress.due_ns:
                progress.show(self._arrived_ns, number + 1)

    def _trip(self, ping: selene.Source, pong: selene.Sink, number: int, timeout_s: float) -> int | None:
        """One round trip in ns; None when no answer came."""
        buffer = ping.get(self._plan.size_bytes)
        _HEADER.pack_into(buffer.data, 0, self._number, number)
        begin_ns = time.monotonic_ns()
        buffer.emit()
        left_s = timeout_s
        while left_s > 0:
            try:
                message = pong.consume(left_s)
            except selene.SeleneTimeoutError:
                return None
            self._arrived_ns = time.monotonic_ns()
            with message:
                if len(message) >= _HEADER.size and _HEADER.unpack_from(message.data) == (self._number, number):
                    return self._arrived_ns - begin_ns
            left_s = timeout_s - (self._arrived_ns - begin_ns) / 1e9
        return None

    def _write(self) -> None:
        """Write the samples that were not written yet."""
        assert self._writer is not None
        period_ns = round(1e9 / self._plan.rate) if self._plan.rate is not None else 0
        unix_ns = time.time_ns() - time.monotonic_ns()
        for number, rtt_ns, arrived_ns in self._unwritten:
            jitter_ns = None
            if period_ns and self._before[0] == number - 1:
                jitter_ns = arrived_ns - self._before[1] - period_ns
            self._before = (number, arrived_ns)
            self._writer.write(telemetry.latency_record(number, rtt_ns, unix_ns + arrived_ns, jitter_ns))
        self._unwritten.clear()
