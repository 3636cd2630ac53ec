# SPDX-License-Identifier: Apache-2.0
"""`selene fsck` against a running daemon: what is right, what is wrong, and what moves."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import selene

BELL_BYTES = 4096
EMITTED = 2 << 56


def fsck(daemon: Any, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-c", "from selene.cli import main; main()", "fsck", "--interval", "0.01", *arguments],
        capture_output=True, text=True, check=False, timeout=30, env={**os.environ, "SELENE_SOCKET": str(daemon.path)},
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def test_nobody_there_is_fine(shared_daemon: Any) -> None:
    status, records, _ = fsck(shared_daemon)
    assert (status, [record["kind"] for record in records]) == (0, ["fsck_daemons", "fsck"])
    assert records[-1] == {"kind": "fsck", "ok": True, "problems": 0, "busy": 0, "looks": 3}


def test_messages_that_wait_and_that_are_held_are_accounted_for(shared_daemon: Any) -> None:
    with selene.Session(socket=str(shared_daemon.path)) as session, session.stream() as stream:
        sink = stream.sink(name="here")
        source = stream.source(name="here")
        for number in range(10):
            source.send(bytes([number]) * 100)
        held = [sink.consume(timeout=5) for _ in range(3)]
        status, records, _ = fsck(shared_daemon)
        (pool,) = of_kind(records, "fsck_transmit_pool")
        assert status == 0
        assert (pool["quiet"], pool["emitted"], pool["references"], pool["on_edges"]) == (True, 10, 10, 10)
        for message in held:
            message.release()
        while sink.try_consume() is not None:
            pass
        source.flush()
        status, records, _ = fsck(shared_daemon)
        (pool,) = of_kind(records, "fsck_transmit_pool")
        assert (status, pool["references"], pool["on_edges"]) == (0, 0, 0)


def test_a_reference_that_nobody_holds_is_found(shared_daemon: Any) -> None:
    """A client that spoils its own pool, which is all it can spoil."""
    client = shared_daemon.client()
    client.session.settimeout(5)
    _, fds, _, _ = socket.recv_fds(client.session, 65536, 8)
    with mmap.mmap(fds[0], BELL_BYTES + 4096) as pool:
        pool[BELL_BYTES : BELL_BYTES + 8] = (EMITTED | 3 << 24).to_bytes(8, sys.byteorder)
        status, records, _ = fsck(shared_daemon)
    for fd in fds:
        os.close(fd)
    client.close()
    assert (status, records[-1]["ok"], records[-1]["problems"]) == (1, False, 1)
    (pool_record,) = of_kind(records, "fsck_transmit_pool")
    assert pool_record["problems"] == [
        f"session {client.welcome.session:016x}: its buffers name 3 references, 0 are accounted for"
    ]


def test_what_moves_is_not_judged(shared_daemon: Any) -> None:
    with selene.Session(socket=str(shared_daemon.path)) as session, session.stream() as stream:
        source = stream.source(name="busy")
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(shared_daemon.ask, "fsck", interval_s=0.05)
            while not asked.done():
                source.send(b"x" * 100)
        records = asked.result()
    (pool,) = of_kind(records, "fsck_transmit_pool")
    assert (pool["quiet"], pool["problems"], records[-1]["ok"], records[-1]["busy"]) == (False, [], True, 1)


@pytest.mark.parametrize("arguments", [("--looks", "0"), ("--interval", "0")])
def test_impossible_arguments_are_wrong_usage(shared_daemon: Any, arguments: tuple[str, str]) -> None:
    status, records, said = fsck(shared_daemon, *arguments)
    assert (status, records) == (2, [])
    assert arguments[0] in said
