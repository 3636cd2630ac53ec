# SPDX-License-Identifier: Apache-2.0
"""`tsn-talker`: cyclic traffic with launch times. What is sent and when is decided here; the loop that sends is in C
(traffic/talker.c)."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from typing import TYPE_CHECKING, Any, Final

from libqos import cli
from libqos.errors import QosError
from tsn_agent.traffic_settings import TalkerSettings

if TYPE_CHECKING:
    from tsn_agent.traffic import Output
    from tsn_agent.traffic_agent import AgentLink
    from tsn_agent.traffic_settings import Talk
    from tsn_agent.traffic_sockets import Way

# What an order may change: its key, and that of the stream's table.
_ORDER_KEYS: Final = {
    "base_time_ns": "base_time", "interface": "interface", "vlan": "vlan", "destination": "destination",
}  # fmt: skip
_SET_UP_NS: Final = 20_000_000  # from the first stream's start to the loop's
COUNTERS: Final = ("sent", "failed", "skipped", "missed", "invalid", "unreachable")


def first_instant(talk: Talk, ahead: int) -> int:
    """The first instant of a stream so many ns away, in TAI ns: base time and offset, advanced by whole periods."""
    from libqos import clock

    ahead += talk.lead if talk.launch_time else 0
    return clock.next_instant(talk.base_time + talk.offset, talk.period, clock.tai_ns() + ahead)


class Stream:
    """One stream: what it sends, its socket, and its counters in C."""

    def __init__(self, talker: Any, talk: Talk) -> None:
        from libqos.hist import Histogram
        from tsn_agent._traffic import ffi, lib

        self.talk = talk
        self._talker = talker
        memory = ffi.buffer(ffi.new("uint64_t[]", (Histogram.size_bytes() + 7) // 8))
        self.lateness = Histogram.create_in(memory)
        self._index: int = lib.qos_talker_add(talker, ffi.from_buffer(memory))
        self._way: Way | None = None
        self._runs = False
        if self._index < 0:
            raise OSError(-self._index, os.strerror(-self._index))

    def start(self, talk: Talk, ahead: int) -> None:
        """Send as `talk` says from its next instant on that is `ahead` ns away. Raises TrafficError; then all is as it
        was."""
        from tsn_agent import traffic_sockets
        from tsn_agent._traffic import ffi, lib

        way = traffic_sockets.open_talker(talk)
        told = ffi.new(
            "struct qos_talk *",
            {
                "fd": way.socket.fileno(), "stream": talk.id, "base_ns": first_instant(talk, ahead),
                "period_ns": talk.period, "lead_ns": talk.lead if talk.launch_time else 0, "count": talk.count,
                "payload_bytes": talk.size, "launch": talk.launch_time,
                "queue": talk.transmit_times or (talk.launch_time and talk.report_errors),
                "prefix_bytes": len(way.prefix), "address_bytes": len(way.address), "prefix": way.prefix,
                "address": way.address,
            },
        )  # fmt: skip
        result = lib.qos_talker_start(self._talker, self._index, told)
        assert result == 0, os.strerror(-result)
        self.close()
        self.talk, self._way, self._runs = talk, way, True

    def does(self, talk: Talk) -> bool:
        """Whether it sends as `talk` says already: its base time may be another one of the same instants."""
        same = dataclasses.replace(talk, base_time=self.talk.base_time) == self.talk
        return self._runs and same and (talk.base_time - self.talk.base_time) % talk.period == 0

    def pause(self) -> None:
        """Send nothing until the next start."""
        from tsn_agent._traffic import lib

        self._runs = False
        lib.qos_talker_pause(self._talker, self._index)

    def counters(self) -> dict[str, int]:
        """What has been sent so far, and what not."""
        from tsn_agent._traffic import ffi, lib

        found = ffi.new("struct qos_talk_counters *")
        lib.qos_talker_counters(self._talker, self._index, found)
        return {name: getattr(found, name) for name in COUNTERS}

    def close(self) -> None:
        if self._way is not None:
            self._way.socket.close()


class Talker:
    """All streams of a command, what comes of them, and what the agent wants."""

    def __init__(self, settings: TalkerSettings, output: Output) -> None:
        from tsn_agent._traffic import ffi, lib
        from tsn_agent.traffic import Events, Loop
        from tsn_agent.traffic_agent import AgentLink

        self._output = output
        self._events = Events()
        self._talker = lib.qos_talker_new(self._events.pointer, settings.spin)
        if self._talker == ffi.NULL:
            raise MemoryError
        self._streams = [Stream(self._talker, talk) for talk in settings.all_streams()]
        self._by_name = {stream.talk.name: stream for stream in self._streams}
        if not settings.hold:
            for stream in self._streams:  # in front of all starts: it takes longer than the first instants are away
                _warn_of_no_etf(stream.talk)
            for stream in self._streams:
                stream.start(stream.talk, _SET_UP_NS)
        self._agent: AgentLink | None = None
        if settings.agent:
            self._agent = AgentLink(settings.agent, list(self._by_name), "talker")
        talker = self._talker
        self._loop = Loop(settings, lambda: int(lib.qos_talker_run(talker)), lambda: lib.qos_talker_stop(talker))

    def run(self) -> int:
        """Send until all is sent or a signal comes; the exit status."""
        from tsn_agent._traffic import lib

        wake = self._agent.wake if self._agent is not None else None
        try:
            self._loop.follow(self._events, wake, self._handle, self._report)
            self._end()
        finally:
            if self._agent is not None:
                self._agent.close()
            lib.qos_talker_free(self._talker)
            self._events.close()
            for stream in self._streams:
                stream.close()
        if self._loop.result < 0:
            raise OSError(-self._loop.result, f"the clock: {os.strerror(-self._loop.result)}")
        return cli.INTERRUPTED if self._loop.interrupted else cli.OK

    def _handle(self) -> None:
        from tsn_agent._traffic import lib
        from tsn_agent.traffic import tai_offset_ns

        offset_ns = tai_offset_ns()
        reports: dict[tuple[str, str], dict[str, Any]] = {}
        for event in self._events.take():
            stream = self._streams[event.stream].talk.name
            if event.kind == lib.QOS_EVENT_TRANSMIT:
                self._output.write(self._transmitted(stream, event, offset_ns))
                continue
            record = _problem(stream, event, offset_ns)
            self._output.write(record)
            # One report for all of a kind: the agent wants to know that, and how much, not each.
            facts = {key: value for key, value in record.items() if key not in ("kind", "stream", "reason")}
            first = reports.setdefault((stream, record["reason"]), {**facts, "count": 0})
            first["count"] += record["count"]
        if self._agent is not None:
            for (stream, kind), facts in reports.items():
                self._agent.report(stream, kind, **facts)
            self._obey(self._agent)
        self._output.flush()

    @staticmethod
    def _transmitted(stream: str, event: Any, offset_ns: int) -> dict[str, Any]:
        from tsn_agent.traffic import STAMPS

        return {
            "kind": "transmit", "ts_ns": event.at_ns - offset_ns, "stream": stream, "seq": event.sequence,
            "launch_ns": event.launch_ns, "late_ns": event.at_ns - event.launch_ns, "timestamp": STAMPS[event.stamp],
        }  # fmt: skip

    def _obey(self, agent: AgentLink) -> None:
        """All orders that have come. One that cannot be followed is reported, and leaves the stream paused."""
        import contextlib
        import queue

        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(agent.wake)
        with contextlib.suppress(queue.Empty):
            while True:
                name, order = agent.orders.get_nowait()
                stream = self._by_name[name]
                try:
                    self._follow(stream, order)
                except (ValueError, QosError) as error:
                    cli.warn(f"stream {name}: an order of the agent cannot be followed: {error}")
                    agent.report(name, "send-failed", message=str(error), ts_ns=time.time_ns())

    @staticmethod
    def _follow(stream: Stream, order: dict[str, Any]) -> None:
        from libqos import config
        from tsn_agent._traffic import lib
        from tsn_agent.traffic_settings import Talk

        try:
            if order.get("order") not in ("stop", "start"):
                raise ValueError(f"order: found {order.get('order')!r}, accepted stop, start or idle")
            rows = config.table(Talk)
            changes: dict[str, Any] = {}
            for key in _ORDER_KEYS.keys() & order.keys():
                try:
                    changes[_ORDER_KEYS[key]] = config.check(rows[_ORDER_KEYS[key]], order[key])
                except ValueError as error:
                    raise ValueError(f"{key}: found {order[key]!r}, accepted {error}") from None
            talk = dataclasses.replace(stream.talk, **changes)
        except ValueError:
            stream.pause()
            raise
        if order["order"] == "start" and stream.does(talk):
            return
        stream.pause()  # also in front of a start: nothing leaves the old way once another was ordered
        if order["order"] == "start":
            stream.start(talk, int(lib.QOS_TALKER_AHEAD_NS))

    def _report(self, *, final: bool = False) -> None:
        for stream in self._streams:
            record: dict[str, Any] = {
                "kind": "talker", "ts_ns": time.time_ns(), "stream": stream.talk.name, "final": final,
                **stream.counters(),
            }  # fmt: skip
            self._output.write(record)
        self._output.flush()

    def _end(self) -> None:
        from libqos.telemetry import QUANTILES
        from tsn_agent.traffic import complain

        self._report(final=True)
        for stream in self._streams:
            found = stream.lateness.summary()
            if found.count:
                quantiles = {key: getattr(found, key.removesuffix("_ns")) for key, _ in QUANTILES}
                self._output.write({
                    "kind": "summary", "metric": "lateness", "count": found.count, "lost": 0, "late": 0,
                    "min_ns": found.min, **quantiles, "max_ns": found.max, "mean_ns": round(found.mean),
                    "stddev_ns": round(found.stddev), "stream": stream.talk.name,
                })  # fmt: skip
        self._output.flush()
        if self._agent is not None:
            self._agent.close()
        complain(self._events, self._agent)


def _warn_of_no_etf(talk: Talk) -> None:
    """Without that queueing discipline Linux ignores launch times, and says nothing."""
    from tsn_agent import traffic_sockets

    if not talk.launch_time or not talk.interface:
        return
    interface = traffic_sockets.interface_of(talk)
    if not traffic_sockets.keeps_launch_times(interface):
        cli.warn(
            f"stream {talk.name}: {interface} has no etf: packets leave when they are sent, {talk.lead} ns before their"
            " launch time; tc qdisc replace dev … parent … etf clockid CLOCK_TAI delta 200000"
        )


def _problem(stream: str, event: Any, offset_ns: int) -> dict[str, Any]:
    """The record of a packet that did not leave, or not as it should."""
    from tsn_agent._traffic import lib

    reasons = {
        lib.QOS_EVENT_MISSED: "launch-missed", lib.QOS_EVENT_INVALID: "launch-invalid",
        lib.QOS_EVENT_FAILED: "send-failed", lib.QOS_EVENT_SKIPPED: "skipped",
    }  # fmt: skip
    record = {
        "kind": "error", "ts_ns": event.at_ns - offset_ns if event.at_ns else time.time_ns(), "stream": stream,
        "reason": reasons[event.kind], "seq": event.sequence, "count": max(1, event.count),
    }  # fmt: skip
    if event.launch_ns:
        record["launch_ns"] = event.launch_ns
    if event.error:
        record["error"] = errno.errorcode.get(event.error, str(event.error))
    return record


@cli.command("tsn-talker")
@cli.configured(TalkerSettings, tool="tsn-talker")
@cli.format_option
@cli.common_options
def talk(settings: TalkerSettings, output_format: str) -> int:
    """Send a packet each period: UDP or raw Ethernet, with launch times if asked for.

    \b
    tsn-talker --destination 10.0.0.2 --period 1ms --size 128 --count 100000
    tsn-talker --destination 10.0.0.2 --interface eth0 --launch-time --lead 500us --priority 3
    tsn-talker --config streams.toml

    Every packet carries stream, sequence number, launch instant and send instant for tsn-listener. Counters come every
    --interval and at the end; what the kernel dropped, what could not be sent, and periods that were slept through are
    records of kind error.
    """
    from tsn_agent.traffic import output

    return Talker(settings, output(output_format)).run()


main = cli.entry(talk)

if __name__ == "__main__":
    main()
