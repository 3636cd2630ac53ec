# SPDX-License-Identifier: Apache-2.0
"""tsn-listener: packets of the test's own, and those of tsn-talker."""

from __future__ import annotations

import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN: Final = Path(sys.executable).parent
PERIOD_NS: Final = 1_000_000
HOUR_NS: Final = 3600 * 10**9


class Sender:
    """Sends packets that the test makes up, to the listener of this test."""

    def __init__(self, traffic: Any) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._to = ("127.0.0.1", traffic.port)
        self.packet = traffic.packet
        self.base_ns = time.clock_gettime_ns(time.CLOCK_TAI)

    def raw(self, data: bytes) -> None:
        self._socket.sendto(data, self._to)

    def send(self, *numbers: int, **fields: Any) -> None:
        for number in numbers:
            self.raw(self.packet(number, self.base_ns + number * PERIOD_NS, **fields))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def sender(traffic: Any) -> Iterator[Sender]:
    made = Sender(traffic)
    yield made
    made.close()


def counted(listener: Any, **expected: int) -> dict[str, Any]:
    """Wait until the counters are these."""
    found: dict[str, Any] = listener.wait_for("listener", **expected)
    return found


def test_all_of_a_talker_arrives(traffic: Any) -> None:
    listener = traffic.listen("--samples")
    talker = traffic.talk("--count", 500)
    traffic.finish(talker, listener)
    final, sent = listener.final(), talker.final()
    assert final["received"] == sent["sent"] == len(listener.of("latency"))
    assert final["received"] + final["lost"] == final["accounted"] == final["newest_seq"] - final["first_seq"] + 1
    assert final["timestamps"] == {"software": final["received"]}
    assert final["on_time"] + final["early"] + final["late"] == final["received"]
    (latency,) = listener.of("summary", metric="latency", final=True)
    samples = sorted(record["latency_ns"] for record in listener.of("latency"))
    assert (latency["count"], latency["min_ns"], latency["max_ns"]) == (len(samples), samples[0], samples[-1])


def test_jitter_is_that_of_the_thesis(traffic: Any) -> None:
    listener = traffic.listen("--samples")
    traffic.finish(traffic.talk("--count", 100), listener)
    samples = listener.of("latency")
    for before, after in itertools.pairwise(samples):
        if after["seq"] == before["seq"] + 1:
            assert after["jitter_ns"] == after["ts_ns"] - (before["ts_ns"] + PERIOD_NS)
        else:
            assert "jitter_ns" not in after
    assert "jitter_ns" not in samples[0]


def test_lost_reordered_and_duplicated(traffic: Any, sender: Sender) -> None:
    listener = traffic.listen("--silence", 0)
    sender.send(0, 1, 5)
    lost = listener.wait_for("sequence", event="lost")
    assert (lost["seq"], lost["count"]) == (2, 3)
    counted(listener, received=3, lost=3)
    sender.send(3, 3)
    counted(listener, received=4, lost=2, reordered=1, duplicated=1, accounted=6)
    assert listener.end(signal.SIGTERM) == 0


def test_a_talker_that_starts_again_is_no_loss(traffic: Any, sender: Sender) -> None:
    listener = traffic.listen("--silence", 0)
    sender.send(*range(100))
    counted(listener, received=100)
    sender.base_ns += HOUR_NS
    sender.send(*range(10))
    record = counted(listener, received=109, restarted=1, refused=1, lost=0)
    assert record["duplicated"] == 0


def test_late_by_windows(traffic: Any, sender: Sender) -> None:
    listener = traffic.listen("--silence", 0, "--period", "1s", "--deadline", "300ms", "--samples")
    now = time.clock_gettime_ns(time.CLOCK_TAI)
    for number, ago_ms in enumerate((3_600_000, 2400, 1200, 400, 100, -60_000)):
        sender.raw(sender.packet(number, now - ago_ms * 1_000_000 + number, send_ns=now))
    record = counted(listener, received=6)
    assert (record["on_time"], record["early"], record["late"]) == (1, 1, 4)
    # 0.4 s and 1.2 s: after the first window, before the end of the second (1.3 s); 2.4 s: after the end of the third
    assert record["late_by"] == [2, 0, 1, *[0] * 12, 1]
    windows = [sample["late_windows"] for sample in listener.of("latency")]
    assert windows[1:] == [3, 1, 1, 0, 0]
    assert windows[0] == 3600
    assert listener.of("sequence", event="late")


def test_windows_of_a_base_time(traffic: Any, sender: Sender) -> None:
    """The launch instant lies 0.2 s within a cycle of 1 s, whose window of 0.5 s ends 0.3 s after it."""
    now = time.clock_gettime_ns(time.CLOCK_TAI)
    listener = traffic.listen("--silence", 0, "--period", "1000s", "--deadline", "500s", "--base-time",
                              now - 200 * 10**9 - 10**9, "--samples")  # fmt: skip
    sender.raw(sender.packet(0, now))
    assert counted(listener, received=1)["on_time"] == 1
    listener.end(signal.SIGTERM)
    (sample,) = listener.of("latency")
    assert 201 * 10**9 <= sample["phase_ns"] < 500 * 10**9


def test_silence_is_said_while_it_lasts_and_its_end_too(traffic: Any, sender: Sender) -> None:
    listener = traffic.listen("--silence", 3)
    sender.send(0, 1)
    silent = listener.wait_for("sequence", event="silent")
    assert (silent["seq"], silent["count"]) == (2, 3)
    sender.send(2)
    resumed = listener.wait_for("sequence", event="resumed")
    assert resumed["silence_ns"] >= 3 * PERIOD_NS


def test_hostile_packets_are_counted_and_not_believed(traffic: Any, sender: Sender) -> None:
    listener = traffic.listen("--silence", 0)
    sender.send(0)
    good = sender.packet(1, sender.base_ns + PERIOD_NS)
    noise = random.Random(7)
    for size in (0, 1, 31):
        sender.raw(good[:size])
    for _ in range(10):
        sender.raw(noise.randbytes(64))
    sender.raw(good[:2] + b"\x02" + good[3:])
    sender.raw(sender.packet(1, 1 << 63))
    sender.send(1, stream=99)
    for number in ((1 << 64) - 1, 1 << 63, 1 << 32):
        sender.raw(sender.packet(number, sender.base_ns + 2 * PERIOD_NS))
    sender.send(1)
    record = counted(listener, received=2, refused=3)
    assert (record["lost"], record["accounted"]) == (0, 2)
    assert listener.end(signal.SIGTERM) == 0
    (strangers,) = listener.of("strangers")
    assert (strangers["too_short"], strangers["version"], strangers["stream"]) == (3, 1, 1)
    assert strangers["foreign"] == 11


def test_several_streams_on_one_port(traffic: Any, tmp_path: Path) -> None:
    places = {"talk": 'destination = "127.0.0.1"\ncount = 50\n', "listen": ""}
    for name, extra in places.items():
        (tmp_path / name).write_text("".join(
            f'[[streams]]\nname = "s{number}"\nid = {number}\nport = {traffic.port}\nperiod = "{number}ms"\n{extra}'
            for number in (1, 2)
        ))  # fmt: skip
    listener = traffic.start("tsn-listener", "--config", tmp_path / "listen", "--interval", "20ms")
    listener.wait_for("listener")
    talker = traffic.start("tsn-talker", "--config", tmp_path / "talk")
    traffic.finish(talker, listener, "s2")  # the one that takes longer
    for name in ("s1", "s2"):
        (received,) = listener.of("listener", stream=name, final=True)
        (sent,) = talker.of("talker", stream=name, final=True)
        assert received["received"] == sent["sent"]


def test_too_few_is_a_failure_that_says_so(traffic: Any, sender: Sender) -> None:
    listener = traffic.start("tsn-listener", "--port", traffic.port, "--count", 5, "--timeout", "1s", "--interval",
                             "20ms")  # fmt: skip
    listener.wait_for("listener")
    sender.send(0, 1, 2)
    assert listener.end() == 1
    assert "nothing has come for 1 s, accepted 5 periods" in listener.errors
    assert listener.final()["unseen"] == 2


def test_a_count_ends_it(traffic: Any, sender: Sender) -> None:
    listener = traffic.listen("--count", 3)
    sender.send(0, 2)
    assert listener.end() == 0
    assert (listener.final()["received"], listener.final()["lost"], listener.final()["unseen"]) == (2, 1, 0)


def test_a_duration_ends_it(traffic: Any) -> None:
    listener = traffic.start("tsn-listener", "--port", traffic.port, "--duration", "100ms")
    assert listener.end() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_counters(traffic: Any, sender: Sender, number: int, status: int) -> None:
    listener = traffic.listen("--silence", 0)
    sender.send(0, 1)
    counted(listener, received=2)
    assert listener.end(number) == status
    assert listener.final()["received"] == 2


def test_a_port_that_is_taken(traffic: Any) -> None:
    traffic.listen()
    second = traffic.start("tsn-listener", "--port", traffic.port)
    assert second.end() == 1
    assert f"port {traffic.port}: Address already in use: another program listens there" in second.errors


def test_into_qos_stat(traffic: Any) -> None:
    listener = subprocess.Popen(
        [BIN / "tsn-listener", "--port", str(traffic.port), "--timeout", "3s", "--samples"],
        stdout=subprocess.PIPE,
    )
    stat = subprocess.Popen([BIN / "qos-stat"], stdin=listener.stdout, stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    listener.stdout.close()
    try:
        bound = f":{traffic.port:04X} "
        wait_until(lambda: bound in Path("/proc/net/udp6").read_text(), "the listener")
        talker = traffic.talk("--count", 200)
        assert talker.end() == 0
        out, _ = stat.communicate(timeout=20)
        assert listener.wait(20) == 0
    finally:
        listener.kill()
        listener.wait()
    assert [json.loads(line)["metric"] for line in out.splitlines()] == ["latency", "jitter"]
    assert json.loads(out.splitlines()[0])["count"] == talker.final()["sent"]
