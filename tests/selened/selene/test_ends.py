# SPDX-License-Identifier: Apache-2.0
"""The end of sinks, sessions, threads and processes, in any order."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import selene

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    Until = Callable[[Callable[[], object], str], None]
    Pair = tuple[selene.Source, selene.Sink]
    Connect = Callable[..., Pair]

PATIENCE_S = 10.0


def test_everything_is_closed_with_the_session(shared_daemon: Any) -> None:
    with selene.Session(shared_daemon.path) as session:
        stream = session.stream()
        source, sink = stream.source(channel=1), stream.sink(channel=1)
        assert {record["kind"] for record in shared_daemon.ask("info")} >= {"session", "stream", "source", "sink"}
    assert source.closed
    assert sink.closed
    session.close()
    stream.close()
    source.close()
    for call, what in (
        (lambda: session.stream(), "session"), (lambda: stream.source(1), "session"),
        (lambda: session.poll(), "session"), (lambda: source.send(b""), "source"), (lambda: source.get(1), "source"),
        (lambda: source.send_many([]), "source"), (lambda: source.flush(), "source"),
        (lambda: source.outcome(0), "source"), (lambda: sink.consume(), "sink"),
        (lambda: sink.try_consume(), "sink"), (lambda: sink.consume_many(1), "sink"), (lambda: sink.fileno(), "sink"),
    ):  # fmt: skip
        with pytest.raises(selene.SeleneError, match=f"the {what} is closed"):
            call()
    assert list(sink) == []


def test_a_closed_stream_takes_its_endpoints_along(session: selene.Session) -> None:
    with session.stream() as stream, stream.source(channel=1) as source:
        pass
    assert source.closed
    with pytest.raises(selene.SeleneError, match="the stream is closed"):
        stream.source(channel=1)


def test_endpoints_can_come_and_go_without_limit(session: selene.Session, shared_daemon: Any, until: Until) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with session.stream() as stream:
        for _ in range(300):
            with stream.source(channel=1) as source, stream.sink(channel=1):
                source.send(b"x")
    until(lambda: not shared_daemon.info("source") and not shared_daemon.info("sink"), "the end of the last one")
    until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the end of their descriptors")


@pytest.mark.parametrize("what", ["sink", "stream", "session"])
def test_closing_ends_a_consumer_in_another_thread(session: selene.Session, what: str) -> None:
    stream = session.stream()
    sink = stream.sink(channel=1)
    errors: list[selene.SeleneError] = []
    begun = threading.Event()

    def consume() -> None:
        begun.set()
        try:
            sink.consume()
        except selene.SeleneError as error:
            errors.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    begun.wait()
    {"sink": sink, "stream": stream, "session": session}[what].close()  # type: ignore[attr-defined]
    thread.join()
    assert [error.errno for error in errors] == [errno.EBADF]


def test_closing_under_fire(shared_daemon: Any) -> None:
    """Threads in every call while the session is closed: each ends with an error that says so."""
    for _ in range(5):
        strange, threads = _close_under_fire(selene.Session(shared_daemon.path))
        for thread in threads:
            thread.join()
        assert strange == []


def _close_under_fire(session: selene.Session) -> tuple[list[BaseException], list[threading.Thread]]:
    stream = session.stream()
    source, sink = stream.source(channel=1), stream.sink(channel=1)
    stream.sink(channel=1, callback=lambda message: bytes(message.data))
    strange: list[BaseException] = []
    begun = threading.Barrier(5)

    def repeat(call: Callable[[], object]) -> None:
        begun.wait()
        try:
            while True:
                call()
        except (selene.SeleneError, ValueError) as error:
            if "closed" not in str(error) and "released" not in str(error):
                strange.append(error)

    def read() -> None:
        with sink.consume() as message:
            bytes(message.data)

    calls = [lambda: source.send(b"x"), read, lambda: stream.source(channel=2).close(), lambda: session.poll()]
    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait()
    wait_until(lambda: sink.stats().messages >= 100, "the messages that come before the end")
    session.close()
    return strange, threads


def test_a_forgotten_session_is_closed_by_the_garbage_collector(shared_daemon: Any, until: Until) -> None:
    def forget() -> None:
        stream = selene.Session(shared_daemon.path).stream()
        stream.sink(channel=1, callback=lambda _: None)
        stream.source(channel=1).get(10)

    forget()
    gc.collect()
    until(lambda: not shared_daemon.info("session"), "the end of the session")


def run(shared_daemon: Any, program: str) -> subprocess.Popen[str]:
    """A Python program with a session: `session`, `stream`."""
    text = (
        "import selene, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        f"session = selene.Session({os.fspath(shared_daemon.path)!r})\n"
        "stream = session.stream()\n"
        "def say(text): print(text, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-c", text + program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "call",
    ["sink.consume()", "sink.consume_many(10)", "list(sink)", "session.poll()", "reliable.send_many([b'x'] * 5000)"],
)
def test_an_interrupt_ends_a_waiting_call(shared_daemon: Any, until: Until, call: str) -> None:
    process = run(
        shared_daemon,
        "other = session.stream(stream=2, delivery='reliable')\n"
        "sink, reliable = stream.sink(channel=1), other.source(channel=1)\n"
        "full = other.sink(channel=1)\n"
        "while not reliable.stats().local_sinks: pass\n"
        "say('ready')\n"
        f"try:\n    {call}\nexcept KeyboardInterrupt:\n    say('interrupted')\nsession.close()\nsay('closed')\n",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S", "its sleep")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, err, process.returncode) == ("interrupted\nclosed\n", "", 0)


@pytest.mark.parametrize(
    "program",
    [
        "stream.source(channel=1).send(b'x')",
        "kept = stream.source(channel=1).get(10).data[1:]",
        "stream.sink(channel=1, callback=lambda m: bytes(m))\nsource = stream.source(channel=1)\n"
        "while not source.stats().local_sinks: pass\nfor _ in range(1000): source.send(b'x')",
        "sink = stream.sink(channel=1)\nthreading.Thread(target=sink.consume, daemon=True).start()",
        "sink = stream.sink(channel=1)\nsource = stream.source(channel=1)\n"
        "while not source.stats().local_sinks: pass\nsource.send(b'x')\nmessage = sink.consume()\nview = message.data",
    ],
)
def test_forgetting_close_leaves_nothing_behind(shared_daemon: Any, until: Until, program: str) -> None:
    process = run(shared_daemon, program)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "Fatal" not in err
    until(lambda: not shared_daemon.info("session"), "the end of the session")


def test_a_killed_client_leaves_nothing_behind(shared_daemon: Any, until: Until) -> None:
    process = run(shared_daemon, "sink = stream.sink(channel=1)\nsay('ready')\nsink.consume()")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    until(lambda: not shared_daemon.info("session"), "the end of the session")


def test_a_session_survives_the_daemon(daemon: Any, connect: Connect, until: Until) -> None:
    with selene.Session(daemon.path) as session, session.stream() as stream:
        source, sink = connect(stream)
        daemon.stop()
        until(lambda: not session.connected, "the loss of the daemon")
        daemon.start()
        until(lambda: session.connected, "the way back")
        until(lambda: source.stats().local_sinks == 1, "the sink at the source")
        source.send(b"again")
        assert bytes(sink.consume(PATIENCE_S)) == b"again"
