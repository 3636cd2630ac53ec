# SPDX-License-Identifier: Apache-2.0
"""`lunar-pub`: messages from stdin to a topic.

Stdin is read as it comes: what is there goes out at once, in one burst, so that a slow line does not wait for the next
one and a fast file costs few calls.
"""

from __future__ import annotations

import errno
import math
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from libqos import cli
from libqos.errors import QosError
from lunar.options import Connection, Positive, options, topic_argument, verbose

if TYPE_CHECKING:
    from selene import Source

    from lunar.framing import Splitter
    from lunar.mom import Lunar
    from lunar.pace import Pace

_BLOCK: Final = 1 << 18
_STDIN: Final = 0


class Publication:
    """What has been published on one topic, and what could not be."""

    def __init__(self, source: Source, splitter: Splitter, pace: Pace | None) -> None:
        self.source = source
        self.splitter = splitter
        self.pace = pace
        self.begin_ns = self.end_ns = time.monotonic_ns()
        # Counted here: the counters of the source begin anew when selened-dp was restarted.
        self.count = 0
        self.size_bytes = 0
        self.unsent = 0  # best effort, and no buffer was free
        self._index = 0  # of the message that is next in what the splitter gave

    def send(self, messages: list[bytes]) -> None:
        """Publish what the splitter has given, each at its time if there is a rate. What is too long for other hosts is
        left to the splitter to count or to complain about. Raises SeleneError."""
        self._index = 0
        if self.pace is None:
            self._burst(messages)
            return
        while messages and self.splitter.error is None:
            self._sleep_until(self.pace.due_ns(time.monotonic_ns()))
            now = self.pace.take(len(messages), time.monotonic_ns())
            self._burst(messages[:now])
            messages = messages[now:]

    def _burst(self, messages: list[bytes]) -> None:
        from selene import SeleneAgainError, SeleneError

        while messages and self.splitter.error is None:
            try:
                sent = self.source.send_many(messages)
                self.count += sent
                self.size_bytes += sum(map(len, messages[:sent]))
            except SeleneAgainError:  # best effort: the first one is lost, others may find a buffer
                self.unsent += 1
                sent = 1
            except SeleneError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                number = self.splitter.number_of(self._index)
                self.splitter.too_long(number, f"{len(messages[0])} bytes", f"one datagram: {error}")
                sent = 1
            self._index += sent
            messages = messages[sent:]
        self.source.flush()
        self.end_ns = time.monotonic_ns()

    @staticmethod
    def _sleep_until(due_ns: int) -> None:
        from libqos import clock

        clock.sleep_until(due_ns, clock.MONOTONIC, spin_ns=0)

    def record(self, topic: str) -> dict[str, Any]:
        """The summary."""
        elapsed_ns = self.end_ns - self.begin_ns
        record = {
            "kind": "published", "ts_ns": time.time_ns(), "topic": topic, "count": self.count,
            "size_bytes": self.size_bytes, "elapsed_ns": elapsed_ns,
            "rate_per_s": round(self.count * 1e9 / max(1, elapsed_ns), 1), "dropped": self.dropped(),
            "skipped": self.splitter.skipped,
        }  # fmt: skip
        if self.pace is not None:
            pace = self.pace
            mean_ns = pace.late_total_ns // max(1, pace.count)
            record |= {"late": pace.late, "late_max_ns": pace.late_max_ns, "late_mean_ns": mean_ns}
        return record

    def dropped(self) -> int:
        """Messages that did not get to a subscriber: no buffer, no credit, a slow local one, refused by the kernel."""
        stats = self.source.stats()
        return self.unsent + stats.dropped + stats.dropped_slow + stats.failed


def _read(fd: int) -> bytes:
    """What is there, at least something; empty at the end."""
    while True:
        try:
            return os.read(fd, _BLOCK)
        except BlockingIOError:  # somebody has made our stdin non-blocking
            select.select([fd], [], [])


def _publish(publication: Publication) -> None:
    """Everything from stdin. Raises FramingError, after what was in front of the error has been sent."""
    splitter = publication.splitter
    while splitter.error is None:
        data = _read(_STDIN)
        publication.send(splitter.feed(data) if data else splitter.end())
        if not data:
            break
    if splitter.error is not None:
        raise splitter.error


def _wait_for_subscriber(moon: Lunar, topic: str, seconds: float | None) -> None:
    if not moon.wait_for_subscriber(topic, seconds):
        raise NoSubscriberError(f"nobody has subscribed to {topic} within {seconds:g} s")


class NoSubscriberError(QosError):
    """Nobody is there to publish to."""


class _Seconds(click.ParamType[float]):
    """A time to wait; without a value the option waits for ever."""

    name = "seconds"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            self.fail(f"found {value!r}, accepted seconds, 0 or more (put TOPIC in front of the option)", parameter)
        return seconds


@cli.command("lunar-pub")
@topic_argument
@click.option("--binary", is_flag=True, help="Stdin is records: 4 bytes of length (little endian), then so many bytes.")
@click.option(
    "--rate",
    type=Positive(),
    metavar="N",
    help="Messages a second, on a schedule that does not drift; how late they were is said at the end."
    "  [default: as they come]",
)
@click.option(
    "--wait-for-subscriber",
    type=_Seconds(),
    is_flag=False,
    flag_value=math.inf,
    metavar="[SECONDS]",
    help="Read nothing until somebody has subscribed, or fail after SECONDS.",
)
@click.option("--skip-long", is_flag=True, help="Leave out, and count, what is too long for a message.")
@options
def pub(
    topic: str,
    connection: Connection,
    binary: bool,
    rate: float | None,
    wait_for_subscriber: float | None,
    skip_long: bool,
) -> int:
    """Publish each line of stdin on TOPIC.

    The newline is not part of the message. What is there goes out at once, in bursts. A message may have 65536 bytes,
    towards other hosts 65427.

    Delivery is reliable unless --qos says otherwise: lunar-pub then waits for slow subscribers and loses nothing. Those
    who subscribe later get what is published from then on.
    """
    from lunar.framing import Lines, Records
    from lunar.pace import Pace

    moon, _ = connection.open("lunar-pub")
    with moon:
        import selene

        splitter = (Records if binary else Lines)(selene.MAX_MESSAGE, skip_long=skip_long)
        publication = Publication(moon.publisher(topic), splitter, Pace(rate) if rate is not None else None)
        try:
            if wait_for_subscriber is not None:
                _wait_for_subscriber(moon, topic, None if math.isinf(wait_for_subscriber) else wait_for_subscriber)
                publication.begin_ns = publication.end_ns = time.monotonic_ns()
            _publish(publication)
        finally:
            moon.close()
            _report(publication, topic)
    return cli.OK


def _report(publication: Publication, topic: str) -> None:
    """What a person has to know, and the summary where it was asked for."""
    if dropped := publication.dropped():
        cli.warn(f"{dropped} messages were dropped: subscribers were too slow for best-effort delivery")
    if skipped := publication.splitter.skipped:
        cli.warn(f"{skipped} messages were left out: too long")
    if verbose() or publication.pace is not None:
        from libqos.telemetry import Writer

        Writer(sys.stderr.buffer).write(publication.record(topic))


main = cli.entry(pub)

if __name__ == "__main__":
    main()
