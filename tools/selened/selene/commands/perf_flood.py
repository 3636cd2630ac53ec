# SPDX-License-Identifier: Apache-2.0
"""`selene perf flood`.

The data goes on the first channel and is never looked at. Around it the two ends talk on the next two channels, with
reliable delivery and as JSON: `begin` (source, until answered), `ready` (sink), `end` with how many were sent (source,
until answered), `done` (sink).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

import selene
from libqos import cli, output
from selene.commands import perf_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selene.commands.perf_run import Plan

_BURST: Final = 64  # messages of one call
_PACED_BURST_NS: Final = 1_000_000  # with --rate a burst is what is due in this time
_ASK_S: Final = 0.05  # between two begins, or two ends
_ORDERS_NS: Final = 100_000_000  # between two looks for orders while data flows
_HURRY_S: Final = 0.5  # how long an interrupted source still waits for its sink
_TAIL_S: Final = 0.3  # after the end was announced: longer silence means that the rest was lost


def run(plan: Plan, role: str | None) -> int:
    """One end, or both."""
    if role == "source":
        return send(plan)
    if role == "sink":
        return Receiver(plan).run()
    return perf_run.both_ends(plan, functools.partial(send, plan), Receiver(plan).run, patience_s=2)


class Talk:
    """The orders between the two ends."""

    def __init__(self, source: selene.Source, sink: selene.Sink) -> None:
        self._source, self._sink = source, sink

    @classmethod
    @contextlib.contextmanager
    def open(cls, plan: Plan, session: selene.Session, *, out: int, back: int) -> Iterator[Talk]:
        with (
            perf_run.open_stream(plan, session, "reliable") as stream,
            stream.sink(channel=plan.channel + back) as sink,
            stream.source(channel=plan.channel + out) as source,
        ):
            yield cls(source, sink)

    def say(self, step: str, **what: object) -> None:
        self._source.send(json.dumps({"step": step, **what}).encode())
        self._source.flush()

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """The next order; an empty one when none came. What is no order is left out."""
        try:
            with self._sink.consume(timeout_s) as message:
                order = json.loads(bytes(message))
        except (selene.SeleneTimeoutError, ValueError):
            return {}
        return order if isinstance(order, dict) else {}


def throughput(role: str, messages: int, size_bytes: int, elapsed_ns: int, **more: object) -> dict[str, object]:
    """A record of kind `throughput`; rates are 0 when nothing could be measured."""
    per_s = messages * 1e9 / elapsed_ns if elapsed_ns > 0 else 0.0
    return {
        "kind": "throughput", "role": role, "messages": messages, "size_bytes": size_bytes, "elapsed_ns": elapsed_ns,
        "messages_per_s": round(per_s), "goodput_bits_per_s": round(per_s * size_bytes * 8), **more,
    }  # fmt: skip


# ---- Source ----


def send(plan: Plan) -> int:
    """Send what the plan says, as soon as a sink is there."""
    run_id = os.urandom(8).hex()
    writer = output.writer(plan.output_format)
    with (
        perf_run.open_session(plan, "source") as session,
        perf_run.open_stream(plan, session) as stream,
        stream.source(channel=plan.channel) as source,
        Talk.open(plan, session, out=1, back=2) as talk,
    ):
        patience = perf_run.Patience(plan, "flood", "sink")
        begin = {"run": run_id, "size_bytes": plan.size_bytes, "count": plan.count, "warmup": plan.warmup}
        while not _answered(talk, "begin", begin, "ready"):
            patience.check()
        while not source.stats().local_sinks + source.stats().remote_sinks:
            patience.check()
            time.sleep(0.001)
        flood = Flood(plan, source)
        patience_s = _HURRY_S
        try:
            flood.run()
            patience_s = plan.timeout_s
        finally:
            stats = source.stats()
            writer.write(
                throughput(
                    "source", flood.measured, plan.size_bytes, flood.elapsed_ns, dropped=stats.dropped,
                    dropped_slow=stats.dropped_slow, failed=stats.failed, again=stats.again,
                )
            )  # fmt: skip
            deadline = time.monotonic() + patience_s
            while not (done := _answered(talk, "end", {"run": run_id, "sent": flood.sent}, "done")):
                if time.monotonic() > deadline:
                    break
        if not done:
            raise perf_run.PeerError(f"the sink did not confirm the end within {patience_s:g} s")
    return cli.OK


def _answered(talk: Talk, step: str, what: dict[str, object], answer: str) -> bool:
    """Say it once, and whether the answer came."""
    talk.say(step, **what)
    heard = talk.hear(_ASK_S)
    while heard:
        if heard.get("step") == answer and heard.get("run") == what["run"]:
            return True
        heard = talk.hear(0)
    return False


class Flood:
    """The sending itself."""

    def __init__(self, plan: Plan, source: selene.Source) -> None:
        self._plan, self._source = plan, source
        self.sent = 0
        self.measured = 0
        self.elapsed_ns = 0

    def run(self) -> None:
        plan, source, pace = self._plan, self._source, perf_run.Pace(self._plan)
        burst = min(_BURST, max(1, _PACED_BURST_NS // pace.period_ns)) if pace.period_ns else _BURST
        messages = [bytes(plan.size_bytes)] * burst
        begin_ns = time.monotonic_ns()
        with perf_run.Progress("flood", plan.total) as progress:
            while self.sent < plan.total:
                pace.wait(self.sent)
                n = min(burst, (plan.warmup if self.sent < plan.warmup else plan.total) - self.sent)
                try:
                    self.sent += source.send_many(messages if n == burst else messages[:n])
                except selene.SeleneAgainError:  # the sinks hold the whole pool: let them run
                    time.sleep(0)
                now_ns = time.monotonic_ns()
                if self.sent <= plan.warmup:
                    begin_ns = now_ns
                self.measured, self.elapsed_ns = max(0, self.sent - plan.warmup), now_ns - begin_ns
                if now_ns >= progress.due_ns:
                    progress.show(now_ns, self.sent)
        source.flush()
        self.elapsed_ns = time.monotonic_ns() - begin_ns


# ---- Sink ----


class Receiver:
    """Receives one flood, and says what came."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._order: dict[str, Any] = {}
        self._received = 0
        self._sent: int | None = None  # by the source's own word
        self._from, self._begin_ns, self._last_ns = 0, 0, 0  # messages and time when measuring began; the last message

    def run(self) -> int:
        """Wait for a source, receive, and print the record, also when interrupted."""
        plan = self._plan
        writer = output.writer(plan.output_format)
        with (
            perf_run.open_session(plan, "sink") as session,
            perf_run.open_stream(plan, session) as stream,
            stream.sink(channel=plan.channel) as sink,
            Talk.open(plan, session, out=2, back=1) as talk,
        ):
            patience = perf_run.Patience(plan, "flood", "source")
            while not self._obey(talk, _ASK_S):
                patience.check()
            try:
                with perf_run.Progress("flood", self._order["warmup"] + self._order["count"]) as progress:
                    self._receive(sink, talk, progress)
            finally:
                writer.write(self._record(sink.stats()))
            talk.say("done", run=self._order["run"])
        return cli.OK

    def _obey(self, talk: Talk, timeout_s: float) -> bool:
        """Take one order; whether there is a run."""
        heard = talk.hear(timeout_s)
        step, known = heard.get("step"), self._order.get("run")
        if step == "begin" and known in (None, heard.get("run")):
            if not all(isinstance(heard.get(key), int) for key in ("size_bytes", "count", "warmup")):
                raise perf_run.PeerError("the source is another version of selene perf")
            self._order = heard
            talk.say("ready", run=heard.get("run"))
        elif step == "end" and known is not None and known == heard.get("run"):
            self._sent = int(heard.get("sent", 0))
        return bool(self._order)

    def _receive(self, sink: selene.Sink, talk: Talk, progress: perf_run.Progress) -> None:
        orders_ns = time.monotonic_ns() + _ORDERS_NS
        silent_from = time.monotonic_ns()
        while True:
            with sink.consume_many(4 * _BURST, _ASK_S) as messages:
                now_ns = time.monotonic_ns()
                if messages:
                    self._count(len(messages), now_ns)
                    silent_from = now_ns
            if not messages or now_ns >= orders_ns:
                self._obey(talk, 0)
                perf_run.look_for_parent()
                orders_ns = now_ns + _ORDERS_NS
            silent_s = (now_ns - silent_from) / 1e9
            if self._sent is not None and (self._received >= self._sent or silent_s > _TAIL_S):
                return
            if silent_s > self._plan.timeout_s:
                raise perf_run.PeerError(f"the source has sent nothing for {silent_s:.0f} s, and said no end")
            if now_ns >= progress.due_ns:
                progress.show(now_ns, self._received)

    def _count(self, n: int, now_ns: int) -> None:
        self._received += n
        if self._received - n < self._order["warmup"] or self._begin_ns == 0:
            self._from, self._begin_ns = self._received, now_ns
        self._last_ns = now_ns

    def _record(self, stats: selene.SinkStats) -> dict[str, object]:
        lost = stats.lost if self._sent is None else max(0, self._sent - self._received)
        return throughput(
            "sink", self._received - self._from, self._order["size_bytes"], self._last_ns - self._begin_ns, lost=lost,
            duplicated=stats.duplicated, reordered=stats.reordered, dropped=stats.dropped,
        )  # fmt: skip
