# SPDX-License-Identifier: Apache-2.0
"""`lunar-sub`: messages of a topic to stdout.

Everything that has arrived is written with one write(2), at once: a single message does not wait for the next one, and
a burst costs few calls.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from libqos import cli
from libqos.errors import QosError
from lunar.options import Connection, Positive, options, topic_argument, verbose

if TYPE_CHECKING:
    from collections.abc import Callable

    from selene import Burst, Sink

_BURST: Final = 512
_SLICE_S: Final = 0.5  # no wait is longer, so that a reader of ours that has gone is noticed
_STDOUT: Final = 1

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class TooFewError(QosError):
    """Fewer messages than were asked for."""


class Output:
    """How messages are written: `lines(burst, now_ns)` gives bytes for stdout."""

    def __init__(self, topic: str, deadline_ns: int | None) -> None:
        self.topic = topic
        self.count = 0
        self.late = 0  # older than the deadline of the QoS class
        self.sources: set[int] = set()
        self._deadline_ns = deadline_ns

    def lines(self, burst: Burst, now_ns: int) -> bytes:
        self.count += len(burst)
        if self._deadline_ns is not None:
            self.late += sum(now_ns - message.sent_ns > self._deadline_ns for message in burst)
        return self._lines(burst, now_ns)

    def _lines(self, burst: Burst, now_ns: int) -> bytes:
        """The payloads, each with a newline."""
        texts = [bytes(message) for message in burst]
        texts.append(b"")
        return b"\n".join(texts)


class BinaryOutput(Output):
    """Records: length and payload, as lunar-pub --binary reads them."""

    def _lines(self, burst: Burst, now_ns: int) -> bytes:
        from lunar.framing import frame

        return b"".join([frame(bytes(message)) for message in burst])


class JsonOutput(Output):
    """A record of kind message each; what is no UTF-8 is in base64."""

    def _lines(self, burst: Burst, now_ns: int) -> bytes:
        lines = []
        for message in burst:
            payload = bytes(message)
            record: dict[str, Any] = {
                "kind": "message", "topic": self.topic, "source": f"{message.source:016x}", "seq": message.sequence,
                "ts_ns": now_ns, "sent_ns": message.sent_ns, "size_bytes": len(payload),
            }  # fmt: skip
            try:
                record["payload"] = payload.decode()
            except UnicodeDecodeError:
                record["payload_base64"] = base64.b64encode(payload).decode()
            lines.append(_encode(record))
        return ("\n".join(lines) + "\n").encode()


class LatencyOutput(Output):
    """A latency record each. Jitter is t(i) − (t(i−1) + T) of the arrivals (thesis 5.1.3), with the period T of the
    given rate, else with the mean of the arrivals so far."""

    def __init__(self, topic: str, deadline_ns: int | None, rate: float | None) -> None:
        super().__init__(topic, deadline_ns)
        self._period_ns = round(1e9 / rate) if rate is not None else None
        self._first_ns = self._previous_ns = 0
        self._arrived = 0

    def _lines(self, burst: Burst, now_ns: int) -> bytes:
        lines = []
        for message in burst:
            self.sources.add(message.source)
            jitter = b',"jitter_ns":%d' % self._jitter(now_ns) if self._arrived else b""
            lines.append(
                b'{"kind":"latency","ts_ns":%d,"seq":%d,"latency_ns":%d%b}\n'
                % (now_ns, message.sequence, now_ns - message.sent_ns, jitter)
            )
            if not self._arrived:
                self._first_ns = now_ns
            self._previous_ns = now_ns
            self._arrived += 1
        return b"".join(lines)

    def _jitter(self, now_ns: int) -> int:
        period_ns = self._period_ns
        if period_ns is None:
            period_ns = (now_ns - self._first_ns) // self._arrived
        return now_ns - (self._previous_ns + period_ns)


def _write(data: bytes) -> None:
    """All of it to stdout. Raises BrokenPipeError when its reader has gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(_STDOUT, view) :]


def _reader_gone() -> bool:
    """Whether the reader of stdout has closed it: then nobody wants a message that may never come."""
    import select

    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _receive(sink: Sink, output: Output, count: int | None, timeout: float | None) -> bool:
    """Write what arrives until there were `count` messages, or none for `timeout` seconds; whether that is enough."""
    until = time.monotonic() + timeout if timeout is not None else None
    while count is None or output.count < count:
        wait = _SLICE_S if until is None else min(_SLICE_S, max(0.0, until - time.monotonic()))
        with sink.consume_many(_BURST if count is None else min(_BURST, count - output.count), wait) as burst:
            data = output.lines(burst, time.time_ns()) if burst else b""
        if data:
            _write(data)
            until = time.monotonic() + timeout if timeout is not None else None
        elif _reader_gone():
            raise BrokenPipeError
        elif until is not None and time.monotonic() >= until:
            return count is None
    return True


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@cli.command("lunar-sub")
@topic_argument
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many messages.  [default: never]")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["raw", "json"]),
    default="raw",
    help="The payload and a newline, or a record each.",
)
@click.option(
    "--binary", is_flag=True, help="Write 4 bytes of length (little endian) and the payload, as lunar-pub reads them."
)
@click.option("--latency", is_flag=True, help="Write a latency record for each message, for qos-stat and qos-plot.")
@click.option(
    "--rate",
    type=Positive(),
    metavar="N",
    help="With --latency: messages a second that are expected, for the jitter.  [default: what is measured]",
)
@click.option(
    "--timeout",
    type=Positive(),
    metavar="SECONDS",
    help="End when nothing has arrived for so long; before --count is reached that is a failure.",
)
@options
def sub(
    topic: str,
    connection: Connection,
    count: int | None,
    output_format: str,
    binary: bool,
    latency: bool,
    rate: float | None,
    timeout: float | None,
) -> int:
    """Write each message on TOPIC to stdout.

    Raw, a message is its payload, byte by byte, and a newline. Each is written when it arrives; those that arrive
    together are written together.

    Messages that were lost, duplicated or out of order are counted, and said on stderr at the end.
    """
    chosen = [name for name, given in (("--binary", binary), ("--latency", latency)) if given]
    if len(chosen) + (output_format == "json") > 1:
        raise click.UsageError(f"{' and '.join([*chosen, '--format json'][:2])}: accepted one of them")
    if rate is not None and not latency:
        raise click.UsageError("--rate is for --latency")
    signal.signal(signal.SIGTERM, _interrupt)
    moon, qos = connection.open("lunar-sub")
    with moon:
        output = _output(topic, output_format, binary, latency, rate, qos.deadline_ns)
        sink = moon.subscribe(topic)
        try:
            enough = _receive(sink, output, count, timeout)
            moon.close()
            if latency:
                _write_loss(sink, output)
        finally:
            moon.close()
            _report(sink, output)
    if not enough:
        raise TooFewError(f"nothing arrived for {timeout:g} s: found {output.count} messages, accepted {count}")
    return cli.OK


def _output(
    topic: str, output_format: str, binary: bool, latency: bool, rate: float | None, deadline_ns: int | None
) -> Output:
    if latency:
        return LatencyOutput(topic, deadline_ns, rate)
    kinds: dict[str, Callable[[str, int | None], Output]] = {"raw": Output, "json": JsonOutput}
    return (BinaryOutput if binary else kinds[output_format])(topic, deadline_ns)


def _write_loss(sink: Sink, output: Output) -> None:
    """The sink's own count of losses, where qos-stat could not find it from gaps in seq, or finds less."""
    lost = sink.stats().lost
    if lost or len(output.sources) > 1:
        from libqos.telemetry import Writer

        Writer().loss(lost)


def _report(sink: Sink, output: Output) -> None:
    """The counters, if there is something to say or it was asked for."""
    stats = sink.stats()
    record = {
        "kind": "received", "ts_ns": time.time_ns(), "topic": output.topic, "count": output.count, "lost": stats.lost,
        "duplicated": stats.duplicated, "reordered": stats.reordered, "dropped": stats.dropped,
        "refused": stats.refused, "late": output.late,
    }  # fmt: skip
    if verbose() or any(record[key] for key in ("lost", "duplicated", "reordered", "dropped", "refused", "late")):
        from libqos.telemetry import Writer

        Writer(sys.stderr.buffer).write(record)


main = cli.entry(sub)

if __name__ == "__main__":
    main()
