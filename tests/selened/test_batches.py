# SPDX-License-Identifier: Apache-2.0
"""A flood between two hosts, with buffers borrowed, emitted and cancelled in every order, while the way of the messages
changes: each arrives once, whole."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.selened.conftest import connected
from tests.waiting import TIMEOUT_S, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCHES: Final = Path(__file__).resolve().parents[2] / "build/tests/batches"
COUNT: Final = 400_000
CLEAN: Final = {"messages": COUNT, "broken": 0, "twice": 0, "untimely": 0, "lost": 0, "duplicated": 0, "reordered": 0}


@pytest.fixture
def hosts(make_daemon: Any) -> list[Any]:
    ports = free_port(), free_port()
    hosts = [
        make_daemon(name, f'[[peers]]\naddress = "127.0.0.1"\nport = {other}\n', port=mine).start()
        for name, mine, other in (("left", *ports), ("right", *reversed(ports)))
    ]
    for host in hosts:
        wait_until(lambda host=host: connected(host), "the connection of the peers")  # type: ignore[misc]
    return hosts


@contextlib.contextmanager
def client(host: Any, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [BATCHES, *map(str, arguments)], env={**os.environ, "SELENE_SOCKET": str(host.path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # On one processor: what two send on one socket the kernel may deliver in another order.
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, {cpus[process.pid % len(cpus)]})
    try:
        if arguments[0] not in ("source", "ask"):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def counted(process: subprocess.Popen[str]) -> dict[str, int]:
    said, _ = process.communicate(timeout=2 * TIMEOUT_S)
    assert process.returncode == 0
    counts: dict[str, int] = json.loads(said)
    return counts


@pytest.mark.timeout(120)
@pytest.mark.parametrize("guest", ["nobody", "there", "here"])
def test_every_message_of_a_flood_arrives_once_and_whole(hosts: list[Any], guest: str) -> None:
    """Guests come and go: `there`, so that the way leads through selened-dp; `here`, on the source's host."""
    here, there = hosts
    with client(there, "sink", COUNT) as sink, client(here, "source", COUNT, len(guest)) as source:
        while guest != "nobody" and source.poll() is None:
            with client(there if guest == "there" else here, "guest"):
                pass
        sent = counted(source)
        assert sent["messages"] == COUNT
        assert sent["failed"] == 0
        assert counted(sink) == CLEAN
    if guest == "nobody":
        assert sent["datagrams"] < COUNT / 4, "it was a flood"


def _wake_ups(process: subprocess.Popen[str], thread: str) -> int:
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == thread:
            (line,) = [line for line in (task / "status").read_text().splitlines() if line.startswith("voluntary_ctxt")]
            return int(line.split()[1])
    raise AssertionError(f"no thread {thread}")


def test_who_answers_in_callbacks_is_no_flood(hosts: list[Any]) -> None:
    """On one processor a send lasts until the other has run, so that the next one follows it at once.

    The batch timer has no part in it."""
    here, there = hosts
    cpu = {min(os.sched_getaffinity(0))}
    count = COUNT // 20
    with client(there, "answer") as answer, client(here, "ask", count) as ask:
        for process in (answer, ask):
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cpu)
        assert counted(ask)["answers"] == count
        assert _wake_ups(answer, "selene-service") < count / 10
