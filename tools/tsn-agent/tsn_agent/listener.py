# SPDX-License-Identifier: Apache-2.0
"""`tsn-listener`: what arrives of tsn-talker's streams, in which window, how late. The loop that receives and counts is
in C (traffic/listener.c); samples become records and summaries here."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from libqos import cli
from libqos.errors import QosError
from tsn_agent.traffic_settings import ListenerSettings

if TYPE_CHECKING:
    import socket

    from libqos.samples import Metric
    from tsn_agent.traffic import Output
    from tsn_agent.traffic_settings import Listen

COUNTERS: Final = (
    "received", "lost", "accounted", "duplicated", "reordered", "refused", "restarted", "silent", "on_time", "early",
    "late",
)  # fmt: skip
STRANGERS: Final = ("too_short", "foreign", "version", "stream")
METRICS: Final = ("latency", "jitter")


class TooFewError(QosError):
    """Fewer packets than were asked for."""


class Stream:
    """One stream: what is expected, its counters in C, and its samples, of this interval and of all."""

    def __init__(self, listener: Any, listen: Listen, count: int) -> None:
        from tsn_agent._traffic import ffi, lib

        self.listen = listen
        self.count = count
        self._listener = listener
        told = {
            "stream": listen.id, "silence": listen.silence, "period_ns": listen.period,
            "deadline_ns": listen.deadline or listen.period,
            "base_ns": listen.base_time if listen.base_time >= 0 else lib.QOS_LISTENER_NO_BASE,
            "last": count - 1 if count else (1 << 64) - 1,
        }  # fmt: skip
        self._index: int = lib.qos_listener_add_stream(listener, ffi.new("struct qos_listen *", told))
        if self._index < 0:
            raise OSError(-self._index, os.strerror(-self._index))
        self.total = self._metrics()
        self._recent = self._metrics()
        self._late_before = 0

    @staticmethod
    def _metrics() -> tuple[Metric, ...]:
        from libqos.samples import Metric

        return tuple(Metric(name, bounded=True, late_above=None) for name in METRICS)

    def add(self, latency_ns: int, jitter_ns: int | None) -> None:
        """Take a sample."""
        for latency, jitter in (self.total, self._recent):
            latency.add(latency_ns)
            if jitter_ns is not None:
                jitter.add(jitter_ns)

    def counters(self) -> dict[str, Any]:
        """What has come so far, and what not. `late_by`: how many were late by 1, 2, ... windows, as far as there were
        any; the last of 16 places counts all that were later."""
        from tsn_agent._traffic import ffi, lib
        from tsn_agent.traffic import STAMPS

        found = ffi.new("struct qos_listen_counters *")
        lib.qos_listener_counters(self._listener, self._index, found)
        record: dict[str, Any] = {name: getattr(found, name) for name in COUNTERS}
        late_by = list(found.late_by)
        while late_by and not late_by[-1]:
            late_by.pop()
        record["late_by"] = late_by
        record["timestamps"] = {name: found.stamped[stamp] for stamp, name in STAMPS.items() if found.stamped[stamp]}
        if found.accounted:
            record |= {"first_seq": found.first, "newest_seq": found.newest}
        if self.count:
            record["unseen"] = max(0, self.count - record["accounted"])
        return record

    def summaries(self, counters: dict[str, Any], *, final: bool) -> list[dict[str, Any]]:
        """Of all samples, or of those since the last call. Losses are those so far."""
        late = counters["late"] - (0 if final else self._late_before)
        self._late_before = counters["late"]
        metrics, self._recent = (self.total if final else self._recent), self._metrics()
        records = [metric.summary(counters["lost"]) for metric in metrics if metric.count]
        return [{**record, "late": late, "stream": self.listen.name, "final": final} for record in records]


class Listener:
    """All streams of a command, and the sockets they come from."""

    def __init__(self, settings: ListenerSettings, output: Output) -> None:
        from tsn_agent._traffic import ffi, lib
        from tsn_agent.traffic import Events, Loop
        from tsn_agent.traffic_agent import AgentLink

        self._settings = settings
        self._output = output
        self._events = Events()
        self._listener = lib.qos_listener_new(self._events.pointer)
        if self._listener == ffi.NULL:
            raise MemoryError
        listens = settings.all_streams()
        self._streams = [Stream(self._listener, listen, settings.count) for listen in listens]
        self._sockets = self._open(listens)
        self._agent = AgentLink(settings.agent, [x.name for x in listens], "listener") if settings.agent else None
        listener = self._listener
        self._loop = Loop(
            settings, lambda: int(lib.qos_listener_run(listener, settings.timeout)),
            lambda: lib.qos_listener_stop(listener),
        )  # fmt: skip
        self._until = time.monotonic_ns() + settings.duration if settings.duration else None
        self._kinds = _kinds()

    def _open(self, listens: tuple[Listen, ...]) -> list[socket.socket]:
        """One socket for all streams that arrive at the same place."""
        from tsn_agent import traffic_sockets
        from tsn_agent._traffic import lib

        places = {(listen.address, listen.ethernet or listen.port, listen.interface): listen for listen in listens}
        sockets = []
        for listen in places.values():
            sockets.append(traffic_sockets.open_listener(listen))
            lib.qos_listener_add_socket(self._listener, sockets[-1].fileno())
        return sockets

    def run(self) -> int:
        """Receive until the end that was asked for, or a signal; the exit status."""
        import errno

        from tsn_agent._traffic import lib

        try:
            self._loop.follow(self._events, None, self._handle, self._report)
            self._report(final=True)
            self._end()
        finally:
            if self._agent is not None:
                self._agent.close()
            lib.qos_listener_free(self._listener)
            self._events.close()
            for each in self._sockets:
                each.close()
        if self._loop.result == -errno.ETIME and self._settings.count:
            raise TooFewError(
                f"nothing has come for {self._settings.timeout / 1e9:g} s, accepted {self._settings.count} periods of"
                " every stream"
            )
        if self._loop.result not in (0, -errno.ETIME):
            raise OSError(-self._loop.result, os.strerror(-self._loop.result))
        return cli.INTERRUPTED if self._loop.interrupted else cli.OK

    def _handle(self) -> None:
        from tsn_agent._traffic import lib
        from tsn_agent.traffic import NO_JITTER, tai_offset_ns

        alarms: dict[tuple[str, str], dict[str, Any]] = {}
        sample, samples = lib.QOS_EVENT_SAMPLE, self._settings.samples
        offset_ns = tai_offset_ns()
        for event in self._events.take():
            stream = self._streams[event.stream]
            if event.kind == sample:
                jitter_ns = event.jitter_ns if event.jitter_ns != NO_JITTER else None
                stream.add(event.latency_ns, jitter_ns)
                if samples:
                    self._output.write(self._sample(stream.listen, event, jitter_ns, offset_ns))
                continue
            # Those of a kind that come together are one record: the counters say the rest.
            name = self._kinds[event.kind]
            found = alarms.setdefault((stream.listen.name, name), {
                "ts_ns": event.at_ns - offset_ns, "seq": event.sequence, "count": 0,
            })  # fmt: skip
            if name == "late":
                found["count"] += 1
                found["windows"] = max(found.get("windows", 0), event.count)
            elif name == "resumed":
                found["count"] += 1
                found["silence_ns"] = event.count
            else:
                found["count"] += event.count
        for (stream_name, name), facts in alarms.items():
            self._output.write({
                "kind": "sequence", "ts_ns": facts["ts_ns"], "stream": stream_name, "event": name, **facts,
            })  # fmt: skip
            if self._agent is not None:
                self._agent.report(stream_name, "sequence", event=name, **facts)
        self._output.flush()
        if self._until is not None and time.monotonic_ns() >= self._until:
            self._loop.stop()

    @staticmethod
    def _sample(listen: Listen, event: Any, jitter_ns: int | None, offset_ns: int) -> dict[str, Any]:
        from libqos.telemetry import latency_record
        from tsn_agent.traffic import STAMPS

        return latency_record(
            event.sequence, event.latency_ns, event.at_ns - offset_ns, jitter_ns, stream=listen.name,
            phase_ns=(event.at_ns - max(0, listen.base_time)) % listen.period, late_windows=event.count,
            launch_ns=event.launch_ns, timestamp=STAMPS[event.stamp],
        )  # fmt: skip

    def _report(self, *, final: bool = False) -> None:
        for stream in self._streams:
            counters = stream.counters()
            self._output.write({
                "kind": "listener", "ts_ns": time.time_ns(), "stream": stream.listen.name, "final": final, **counters,
            })  # fmt: skip
            for summary in stream.summaries(counters, final=final):
                self._output.write(summary)
        self._output.flush()

    def _end(self) -> None:
        """What concerns no stream, if there is something to say."""
        from tsn_agent import traffic_sockets
        from tsn_agent._traffic import ffi, lib
        from tsn_agent.traffic import complain

        found = ffi.new("struct qos_listen_strangers *")
        lib.qos_listener_strangers(self._listener, found)
        strangers = {name: getattr(found, name) for name in STRANGERS}
        dropped = sum(map(traffic_sockets.dropped, self._sockets))
        if dropped or any(strangers.values()):
            self._output.write({"kind": "strangers", "ts_ns": time.time_ns(), **strangers, "dropped": dropped})
            self._output.flush()
        if dropped:
            cli.warn(f"{dropped} datagrams found the socket's buffer full: some of what is counted as lost")
        if self._agent is not None:
            self._agent.close()
        complain(self._events, self._agent)


def _kinds() -> dict[int, str]:
    """The word of each event that is no sample."""
    from tsn_agent._traffic import lib

    words = ("late", "lost", "reordered", "duplicated", "restarted", "silent", "resumed")
    return {getattr(lib, f"QOS_EVENT_{word.upper()}"): word for word in words}


@cli.command("tsn-listener")
@cli.configured(ListenerSettings, tool="tsn-listener")
@cli.format_option
@cli.common_options
def listen(settings: ListenerSettings, output_format: str) -> int:
    """Receive the streams of tsn-talker: which packets come, in which window, with which latency and jitter.

    \b
    tsn-listener --period 1ms --count 100000
    tsn-listener --period 1ms --base-time 0 --deadline 300us --samples | qos-stat
    tsn-listener --config streams.toml

    What is lost, late, silent, duplicated or out of order is said at once (records of kind sequence); counters and
    summaries come every --interval and at the end. Times of arrival are those of the hardware if it has them, else of
    the kernel, else of this program; the records say which.
    """
    from tsn_agent.traffic import output

    return Listener(settings, output(output_format)).run()


main = cli.entry(listen)

if __name__ == "__main__":
    main()
